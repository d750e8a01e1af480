"""The command `report`."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from prograd_fast.cli.folders import check_writable
from prograd_fast.terminal.output import say


def report(
    folders: Annotated[list[Path], Argument(metavar="RUN|GRID...", help="Show what `train` or `compare` wrote here.")],
    out: Annotated[Path, Option(metavar="FILE", help="Write the page to this HTML file.")],
) -> None:
    """Write one HTML page about runs and comparisons, which needs nothing beside it.

    It shows accuracies, learning curves, classes, mistakes, calibration and the pictures that went wrong.

    Example: [bold]prograd-fast report runs/mine runs/other --out report.html[/bold]
    """
    from prograd_fast.report import write_page

    check_writable(out.parent)
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; expected the name of a file, such as {out / 'report.html'}")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_page(folders, out)
    say(f"Wrote {out} ({out.stat().st_size / 1e6:.1f} MB). Open it in a browser.")
