"""The command `demo`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from typer import Option

from prograd_fast.cli.folders import cache_folder, check_writable
from prograd_fast.cli.models import open_model
from prograd_fast.cli.options import Cache, Device, NoCache
from prograd_fast.terminal.output import console, progress

STEPS = (0, 5, 10, 20, 50, 100)  # of the path through training
_OUT = "Write results.json, plane.png and conflict.png to this folder."


def demo(
    out: Annotated[Path, Option(metavar="DIR", help=_OUT)] = Path("demo"),
    device: Device = None,
    cache: Cache = None,
    no_cache: NoCache = False,
) -> None:
    """Compare zero-shot, CoOp, ProGrad, KgCoOp and GDA on emoji: base classes, new ones, and the path through training.

    Example: [bold]prograd-fast demo --out demo[/bold]
    """
    import numpy as np

    from prograd_fast import data as picture_sets
    from prograd_fast.methods import GDA, CoOp, KgCoOp, ProGradCoOp, ZeroShot
    from prograd_fast.report import report_demo
    from prograd_fast.training import Grid, accuracy_path, encode_pictures, run_grid

    check_writable(out)
    feature_cache = cache_folder(cache, no_cache)
    pictures = picture_sets.load("emoji")
    clip = open_model("emoji-lite", None, device)
    # each at its own learning rate, from the same ones, by validation pictures: docs/settings.md; GDA has none
    methods = [ZeroShot(), CoOp(lr=0.3), ProGradCoOp(lr=0.03), KgCoOp(lr=1.0), GDA()]
    grid = Grid(methods, shots=[16], seeds=3, partitions=3)
    followed = [method for method in grid.methods if isinstance(method, CoOp | ProGradCoOp)]
    with progress() as track, TemporaryDirectory() as runs:  # a demo begins anew each time
        feature_cache = feature_cache or Path(runs) / "features"  # the paths need them again
        results = run_grid(grid, clip, pictures, Path(runs), track, feature_cache)
        plans = grid.plans(pictures)[0].values()
        rows = np.unique(np.concatenate([plan.rows for plan in plans]))
        features = encode_pictures(clip, pictures, rows, track("looking at the pictures", len(rows)), feature_cache)
        on_path = track("paths", len(plans) * len(followed))
        results["paths"] = []
        for plan in plans:
            for method in followed:
                found = accuracy_path(method, clip, features, plan, STEPS)
                which = {"method": method.name, "partition": plan.partition, "seed": plan.seed}
                results["paths"].append({**which, "accuracy": found})
                on_path()
    out.mkdir(parents=True, exist_ok=True)
    report_demo(results, out, console)
