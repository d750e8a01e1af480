"""The commands `cache info` and `cache clear`."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from prograd_fast.cli.options import Cache
from prograd_fast.terminal.output import Table, console, say

if TYPE_CHECKING:
    from prograd_fast.clip.feature_cache import Stored

cache_app = typer.Typer(help="Show or remove the image features that are kept between runs.", no_args_is_help=True)


@cache_app.command()
def info(cache: Cache = None) -> None:
    """List the models whose image features are kept, with the number of pictures and the size.

    Example: [bold]prograd-fast cache info[/bold]
    """
    root, found = _stored(cache)
    if not found:
        say(f"{root} holds no image features.")
        return
    table = Table("model", "pictures", "MB", "last stored")
    for stored in found:
        day = datetime.fromtimestamp(stored.changed).strftime("%Y-%m-%d")
        table.add_row(stored.label or "?", str(stored.pictures), f"{stored.size / 1e6:.1f}", day)
    say(f"{root}:")
    console.print(table)


@cache_app.command()
def clear(cache: Cache = None) -> None:
    """Remove all image features that are kept. Later runs encode their pictures again.

    Example: [bold]prograd-fast cache clear[/bold]
    """
    from prograd_fast.clip.feature_cache import clear as remove

    root, found = _stored(cache)
    remove(root)
    say(f"Removed {sum(one.size for one in found) / 1e6:.1f} MB of image features from {root}")


def _stored(folder: Path | None) -> tuple[Path, list["Stored"]]:
    from prograd_fast.clip.feature_cache import default_cache, stored

    root = default_cache() if folder is None else folder
    if root is None:
        raise ValueError("there is no folder for caches; give one with --cache")
    return root, stored(root)
