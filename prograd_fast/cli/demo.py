"""The command `demo`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from typer import Option

from prograd_fast.cli.folders import cache_folder, check_writable
from prograd_fast.cli.models import open_model
from prograd_fast.cli.options import Cache, Device, NoCache
from prograd_fast.terminal.output import console, progress

_OUT = "Write results.json, accuracy.png and conflict.png to this folder."


def demo(
    out: Annotated[Path, Option(metavar="DIR", help=_OUT)] = Path("demo"),
    device: Device = None,
    cache: Cache = None,
    no_cache: NoCache = False,
) -> None:
    """Compare zero-shot, a linear probe, CoOp and ProGrad on emoji: base classes, new classes and unseen styles.

    Example: [bold]prograd-fast demo --out demo[/bold]
    """
    from prograd_fast import data as picture_sets
    from prograd_fast.methods import CoOp, LinearProbe, ProGrad, ZeroShot
    from prograd_fast.report import report_demo
    from prograd_fast.training import Grid, run_grid

    check_writable(out)
    feature_cache = cache_folder(cache, no_cache)
    pictures = picture_sets.load("emoji")
    clip = open_model("emoji-lite", None, device)
    grid = Grid([ZeroShot(), LinearProbe(), CoOp(), ProGrad()], shots=[16], seeds=3, partitions=3)
    with progress() as track, TemporaryDirectory() as runs:  # a demo begins anew each time
        results = run_grid(grid, clip, pictures, Path(runs), track, feature_cache)
    out.mkdir(parents=True, exist_ok=True)
    report_demo(results, out, console)
