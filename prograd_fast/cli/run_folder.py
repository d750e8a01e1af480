"""The folder of a run: what may be there before it, whether the run is finished, and how it is written."""

import sys
from pathlib import Path
from typing import Any

from prograd_fast.terminal import interrupts
from prograd_fast.terminal.printable import message_line

CURVES = "curves.png"


def check_what_is_there(out: Path, resume: bool, force: bool) -> None:
    """ValueError where `out` holds an earlier run, an unfinished one, folds, or a folder in the place of a file."""
    from prograd_fast.training import CHECKPOINT, RUN_FILES

    for file in (out / name for name in (*RUN_FILES, CHECKPOINT, CURVES)):
        if file.is_dir():
            raise ValueError(f"cannot write {file}: a folder of this name is there; choose another --out")
    if (out / "fold0").exists():
        raise ValueError(f"{out} holds the folds of an earlier run; choose another --out")
    if force or resume:
        return
    if any((out / name).exists() for name in RUN_FILES):
        raise ValueError(f"{out} holds an earlier run; choose another --out, or --force to replace it")
    if (out / CHECKPOINT).exists():
        raise ValueError(f"{out} holds an unfinished run; --resume to go on with it, --force to begin anew")


def is_finished(out: Path, facts: dict[str, Any]) -> bool:
    """Whether `out` holds this run, finished. ValueError where it holds another one and no checkpoint."""
    from prograd_fast.training import CHECKPOINT, RUN_FILES, difference_to

    checkpoint = out / CHECKPOINT
    if not (out / RUN_FILES[0]).exists():
        return False
    try:
        difference = difference_to(out, facts)
    except ValueError as error:
        difference = str(error)
    if difference is None:
        checkpoint.unlink(missing_ok=True)
        return True
    if not checkpoint.exists():  # a checkpoint means that this run was to replace the other
        raise ValueError(f"{out} holds no run to resume: {difference}; choose another --out, or --force to replace it")
    return False


def write_run(out: Path, record: dict[str, Any], learner: Any) -> None:
    """Write the run, then remove its checkpoint, then draw its learning curves, which are no part of it."""
    from prograd_fast.training import CHECKPOINT, save_run

    checkpoint = out / CHECKPOINT
    with interrupts.Held():
        try:
            save_run(out, record, learner)
        except OSError as error:
            again = f"go on from {checkpoint} with --resume" if checkpoint.exists() else "run it again"
            raise OSError(f"{error}; then {again}: the numbers will be the same") from error
        checkpoint.unlink(missing_ok=True)
    try:
        _draw_curves(out, record)
    except (OSError, ImportError) as error:
        print(message_line(f"the run is kept, its learning curves are not drawn: {error}"), file=sys.stderr)


def _draw_curves(out: Path, record: dict[str, Any]) -> None:
    from prograd_fast.report import TITLES, curves_figure
    from prograd_fast.terminal.printable import printable

    (out / CURVES).unlink(missing_ok=True)  # of the run before
    about = f"Model {record['model']['name']}, data {record['data']['name']}, {record['pictures']['train']} pictures"
    curves_figure(record, out / CURVES, f"Training of {TITLES[record['method']]}\n{printable(about)}")
