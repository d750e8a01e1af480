"""The command `prograd-fast compare`: a grid of runs, its tables and its pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prograd_fast import interrupts
from prograd_fast.cli_parts import (
    Cache,
    Data,
    Device,
    MaxMemory,
    Model,
    NoCache,
    Precision,
    Pretrained,
    Views,
    cache_folder,
    check_text_tower,
    check_writable,
    console,
    open_model,
)
from prograd_fast.inputs import read_json
from prograd_fast.terminal import progress

if TYPE_CHECKING:
    from prograd_fast.methods import Method


def compare(
    data: Data,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for runs, tables and pictures.")],
    methods: Annotated[
        str, typer.Option(metavar="NAME,...", help="Methods, see `prograd-fast methods`; or all.")
    ] = "all",
    shots: Annotated[str, typer.Option(metavar="K,...", help="Pictures per class to learn from.")] = "1,2,4,8,16",
    seeds: Annotated[int, typer.Option(min=1, help="How many draws of these pictures.")] = 3,
    partitions: Annotated[
        int, typer.Option(min=0, help="How many random halves of base and new classes; 0: all classes are learned.")
    ] = 0,
    imbalance: Annotated[
        float | None,
        typer.Option(min=1, help="Long-tailed training: so many times fewer pictures of the least frequent class."),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(metavar="DATA", help="Another set to test on, among its own classes; may be given repeatedly."),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help='Settings of methods, JSON: {"prograd": {"lr": 0.1, "preset": NAME}, ...}.'),
    ] = None,
    model: Model = "emoji-lite",
    pretrained: Pretrained = None,
    precision: Precision = "fp32",
    max_memory: MaxMemory = None,
    views: Views = None,
    device: Device = None,
    cache: Cache = None,
    no_cache: NoCache = False,
) -> None:
    """Compare methods over numbers of shots and seeds; goes on where it was stopped.

    Example: [bold]prograd-fast compare --data emoji --methods coop,prograd --shots 1,4,16 --seeds 5 --out grid[/bold]

    A grid may grow: with more methods, shots or seeds, the same command runs what is new.
    """
    from prograd_fast import data as picture_sets
    from prograd_fast.report import report_comparison
    from prograd_fast.training import Grid, TrainOptions, run_grid

    check_writable(out)
    kept = cache_folder(cache, no_cache)
    grid = Grid(
        _methods(methods, {} if settings is None else _read(settings)),
        _numbers(shots),
        seeds,
        partitions,
        imbalance,
        TrainOptions(precision, views=views),
    )
    pictures = picture_sets.load(data)
    others = [picture_sets.load(name) for name in also or []]
    clip = open_model(model, pretrained, device, max_memory)
    check_text_tower(clip, grid.methods)
    interrupts.hint = lambda: "; the same command goes on where it was stopped"
    with progress() as track:
        results = run_grid(grid, clip, pictures, out, track, kept, others)
    report_comparison(results, out, console)


def _methods(names: str, settings: dict[str, Any]) -> list["Method"]:
    from prograd_fast.methods import METHODS, method_named

    chosen = [method.name for method in METHODS] if names == "all" else [name.strip() for name in names.split(",")]
    for name in settings:
        if name not in chosen:
            raise ValueError(f"--settings has {name!r}, which is not among the methods {', '.join(chosen)}")
    return [
        method_named(name, {key: value for key, value in own.items() if key != "preset"}, own.get("preset"))
        for name, own in ((name, settings.get(name, {})) for name in chosen)
    ]


def _read(file: Path) -> dict[str, Any]:
    try:
        settings = read_json(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"--settings {file} cannot be read as JSON: {error}") from error
    if not isinstance(settings, dict) or not all(isinstance(own, dict) for own in settings.values()):
        raise ValueError(f'--settings {file}: expected {{"METHOD": {{"NAME": VALUE, ...}}, ...}}')
    return settings


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"--shots: expected numbers with commas between them, such as 1,4,16, got {text!r}") from None
