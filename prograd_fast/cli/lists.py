"""The commands `methods`, `models` and `doctor`, which only show what there is."""

from typing import Annotated

from typer import Argument

from prograd_fast.terminal.output import Table, console, say

_MOST = 25  # rows: a longer list is not read
_PART = "List the models with this in their names, or the weights of the model of this name."


def methods() -> None:
    """List the methods: what they train and keep, whether they name new classes, their settings and presets."""
    from prograd_fast.methods import METHODS

    table = Table("method", "year", "new classes")
    for column in ("trains", "keeps"):
        table.add_column(column, max_width=24)
    for method in METHODS:
        names = "yes" if method.names_new_classes else "no"
        table.add_row(method.name, str(method.year or "-"), names, method.trains, method.keeps)
    console.print(table)
    say("Settings (--set NAME=VALUE) and presets, published settings (--preset NAME):")
    table = Table("method")
    table.add_column("settings and defaults", max_width=48)
    table.add_column("presets", max_width=32)
    for method in METHODS:
        table.add_row(method.name, ", ".join(method.defaults()), ", ".join(method.presets) or "-")
    console.print(table)


def models(part: Annotated[str, Argument(metavar="NAME", help=_PART)] = "") -> None:
    """List what --model takes: the embedded models, some of open_clip's to begin with, and what is on your disk.

    Example: [bold]prograd-fast models siglip[/bold], and [bold]prograd-fast models ViT-B-16[/bold] for its weights
    """
    from prograd_fast.clip.emoji_lite import NAMES
    from prograd_fast.clip.pretrained.catalogue import count_parameters, matching_entries, usual_entries
    from prograd_fast.clip.pretrained.names import known_architectures, near

    entries = matching_entries(part) if part else usual_entries()
    named = next((entry for entry in entries if entry.name.lower() == part.lower()), None)
    if not entries:
        raise ValueError(f"no model has {part!r} in its name{near(part, known_architectures())}")
    if named is not None and named.tags:
        table = Table("--pretrained", "on disk, MB")
        for tag in named.tags:
            file = named.on_disk.get(tag)
            table.add_row(tag, "-" if file is None else f"{file.stat().st_size / 1e6:.0f}")
        say(f"Weights of --model {named.name}; a file is possible, too:")
        console.print(table)
    others = [entry for entry in entries if entry is not named or not entry.tags]
    if not others:
        return
    table = Table("--model", "parameters, M", "fp32, MB", "pixels", "tags", "on disk")
    for entry in others[:_MOST]:
        n = count_parameters(entry.name)
        sizes = ("-", "-") if n is None else (f"{n / 1e6:.0f}", f"{4 * n / 1e6:.0f}")
        tags = str(len(entry.tags)) if entry.tags else "its own" if entry.name in NAMES else "a file"
        table.add_row(entry.name, *sizes, str(entry.image_size), tags, ", ".join(entry.on_disk) or "-")
    console.print(table)
    if len(others) > _MOST:
        say(f"{len(others) - _MOST} more: {', '.join(entry.name for entry in others[_MOST:])}")
    if not part:
        say(f"open_clip has {len(known_architectures())} models: prograd-fast models PART_OF_A_NAME")


def doctor() -> None:
    """Show versions, devices and backends, and how to install what is missing."""
    from prograd_fast.doctor import show_config

    print(show_config())
