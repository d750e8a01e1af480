"""The command `train`."""

import json
import reprlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from prograd_fast.cli.folders import cache_folder, check_writable
from prograd_fast.cli.folds import check_folds, train_folds
from prograd_fast.cli.matching import check_match
from prograd_fast.cli.models import check_teacher_options, open_model, open_teacher
from prograd_fast.cli.one_run import OneRun
from prograd_fast.cli.options import (
    MEMORY_AND_SPEED,
    TESTS,
    TRAINING,
    Cache,
    Data,
    Device,
    Graph,
    MaxMemory,
    Model,
    NoCache,
    Precision,
    Pretrained,
    Root,
    TeacherModel,
    TeacherPretrained,
    Views,
)
from prograd_fast.cli.pictures import open_pictures
from prograd_fast.cli.ranks import device_of_rank, joined
from prograd_fast.cli.run_folder import check_what_is_there
from prograd_fast.terminal.output import console, say

if TYPE_CHECKING:
    from prograd_fast.methods import Method
    from prograd_fast.training import TrainOptions

_OUT = "Write the run to this folder: record, what was learned, learning curves."
_METHOD = "Adapt the model by this method. `prograd-fast methods` lists them. Default: prograd."
_PRESET = "Take these published settings. `prograd-fast methods` lists them."
_PARTITION = (
    "Learn a random half of the classes (base), test on both. N chooses the halves. Default for an embedded set: 0; "
    "for a folder: learn all."
)
_SHOTS = "Learn from so many pictures per class, or from all. Default: 16."
_TEST_SHARE = "Test on this share of a folder's pictures. Default: 0.4."
_FOLDS = "Train K times, test on another part each time, and report mean and spread."
_CTX_INIT = 'Start from these words before the class name. Default: "a picture of a".'
_N_CTX = "Tune so many context tokens. Default: as many as the words have."
_LR = "Start at this learning rate. Default: the method's own."
_EPOCHS = "Pass over the pictures so often. Default: the method's own number."
_SET = "Change any other setting of the method. Can be repeated."
_ACCUMULATE = "Send each batch through the text tower in N parts, which divides its memory."
_PATIENCE = "Stop after N epochs without a better validation accuracy; keep the best."
_LOG = "Log every step to this folder for TensorBoard."


def train(
    data: Data,
    out: Annotated[Path, Option(metavar="RUN", help=_OUT)],
    method: Annotated[str, Option(metavar="NAME", help=_METHOD, show_default=False)] = "prograd",
    shots: Annotated[str, Option(metavar="N|all", help=_SHOTS, show_default=False)] = "16",
    model: Model = "emoji-lite",
    pretrained: Pretrained = None,
    root: Root = None,
    resume: Annotated[bool, Option("--resume", help="Continue the stopped run in RUN.")] = False,
    force: Annotated[bool, Option("--force", help="Replace an earlier run in RUN.")] = False,
    seed: Annotated[
        int, Option(min=0, metavar="N", help="Draw the pictures with this random seed.", rich_help_panel=TESTS)
    ] = 0,
    test_share: Annotated[float | None, Option(metavar="X", help=_TEST_SHARE, rich_help_panel=TESTS)] = None,
    folds: Annotated[int | None, Option(min=2, metavar="K", help=_FOLDS, rich_help_panel=TESTS)] = None,
    partition: Annotated[int | None, Option(min=0, metavar="N", help=_PARTITION, rich_help_panel=TESTS)] = None,
    all_classes: Annotated[
        bool, Option("--all-classes", help="Learn all classes of an embedded set.", rich_help_panel=TESTS)
    ] = False,
    preset: Annotated[str | None, Option(metavar="NAME", help=_PRESET, rich_help_panel=TRAINING)] = None,
    ctx_init: Annotated[str | None, Option(metavar="WORDS", help=_CTX_INIT, rich_help_panel=TRAINING)] = None,
    n_ctx: Annotated[int | None, Option(min=1, metavar="N", help=_N_CTX, rich_help_panel=TRAINING)] = None,
    lr: Annotated[float | None, Option(metavar="X", help=_LR, rich_help_panel=TRAINING)] = None,
    epochs: Annotated[int | None, Option(min=1, metavar="N", help=_EPOCHS, rich_help_panel=TRAINING)] = None,
    settings: Annotated[
        list[str] | None, Option("--set", metavar="NAME=VALUE", help=_SET, rich_help_panel=TRAINING)
    ] = None,
    teacher_model: TeacherModel = None,
    teacher_pretrained: TeacherPretrained = None,
    patience: Annotated[int | None, Option(min=1, metavar="N", help=_PATIENCE, rich_help_panel=TRAINING)] = None,
    views: Views = None,
    log: Annotated[Path | None, Option(metavar="DIR", help=_LOG, rich_help_panel=TRAINING)] = None,
    device: Device = None,
    cache: Cache = None,
    no_cache: NoCache = False,
    precision: Precision = "fp32",
    graph: Graph = None,
    max_memory: MaxMemory = None,
    accumulate: Annotated[
        int, Option(min=1, metavar="N", help=_ACCUMULATE, show_default=False, rich_help_panel=MEMORY_AND_SPEED)
    ] = 1,
) -> None:
    """Adapt a model to a few pictures per class, test it, and save what it learned with a record of the run.

    Example: [bold]prograd-fast train --data my_pictures --method prograd --shots 16 --out runs/mine[/bold]

    my_pictures has one folder of pictures per class. A file classes.txt in it
    can name the classes: it has a line "FOLDER readable name" for each folder.
    """
    from prograd_fast import data as picture_sets
    from prograd_fast.methods import check_takes_teacher, method_named
    from prograd_fast.training import TrainOptions

    check_writable(out)
    feature_cache = cache_folder(cache, no_cache)
    _refuse_both(("--resume", resume), ("--force", force))
    _refuse_both(("--test-share", test_share is not None), ("--folds", folds is not None))
    check_teacher_options(teacher_model, teacher_pretrained, views)
    _refuse_both(("--partition", partition is not None), ("--all-classes", all_classes))
    if folds is None:
        check_what_is_there(out, resume, force)
    else:
        check_folds(out, folds, resume, force)
    if log is not None:
        check_writable(log, "--log")
    options = TrainOptions(precision, accumulate, patience, views, graph)
    named = {"ctx_init": ctx_init, "n_ctx": n_ctx, "lr": lr, "epochs": epochs}
    given = {name: value for name, value in named.items() if value is not None}
    tuning = method_named(method, given | _parse_settings(settings or []), preset)
    _tell_idle(tuning, options)
    if teacher_model is not None:
        check_takes_teacher(tuning)
    n_shots = _parse_shots(shots)
    split: dict[str, Any] = {} if test_share is None else {"test_share": test_share}
    device = device_of_rank(device)
    clip = open_model(model, pretrained, device, max_memory)  # before many pictures are read, if it cannot be loaded
    teacher = open_teacher(teacher_model, teacher_pretrained, device)
    pictures = open_pictures(data, root=root, **(split if folds is None else {"fold": (0, folds)}))
    if data in picture_sets.EMBEDDED and not all_classes:
        partition = partition or 0
    check_match(clip, [pictures], [tuning])
    one = OneRun(tuning, clip, n_shots, seed, partition, options, feature_cache, resume, force, teacher)
    with joined(out, clip.device) as folder:
        if folder != out:
            log = None
        if folds is None:
            _report(folder, one.train(pictures, folder, log))
        else:
            train_folds(one, pictures, folds, folder, log)


def _tell_idle(method: "Method", options: "TrainOptions") -> None:
    """Tell which options change nothing, because a method takes no training steps."""
    from prograd_fast.methods import GradientMethod
    from prograd_fast.training import TrainOptions

    names = ["precision", "accumulate", "patience"]
    if method.crops is None:
        names.append("views")
    idle = [f"--{name}" for name in names if getattr(options, name) != getattr(TrainOptions(), name)]
    if idle and not isinstance(method, GradientMethod):
        say(f"{method.title} takes no training steps: {', '.join(idle)} {'change' if idle[1:] else 'changes'} nothing.")


def _refuse_both(one: tuple[str, bool], other: tuple[str, bool]) -> None:
    """ValueError where two options are given that exclude each other."""
    if one[1] and other[1]:
        raise ValueError(f"{one[0]} and {other[0]} exclude each other")


def _parse_shots(text: str) -> int | None:
    """A number of pictures per class; None for all."""
    if text == "all":
        return None
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise ValueError(f"--shots: expected a number of 1 or more, or all, got {text!r}")
    return int(text)


def _parse_settings(given: list[str]) -> dict[str, object]:
    """NAME=VALUE, where a value is JSON, or else text."""
    settings: dict[str, object] = {}
    for setting in given:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set: expected NAME=VALUE, got {setting!r}")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
        except RecursionError:
            raise ValueError(f"--set {name}: the JSON is nested too deeply, got {reprlib.repr(value)}") from None
    return settings


def _report(out: Path, record: dict[str, Any]) -> None:
    """Print the accuracies beside those of zero-shot, and how the training went."""
    from prograd_fast.methods import ZeroShot
    from prograd_fast.report import accuracy_table
    from prograd_fast.training import is_known_model

    learned = len(record["trained_classes"])
    say(f"Accuracy in % ({100 / learned:.1f} by guessing):")
    rows = [record]
    if record["method"] != ZeroShot.name:
        rows.insert(0, {"method": ZeroShot.name, "accuracy": record["zero_shot_accuracy"]})
    console.print(accuracy_table(rows, list(record["accuracy"])))
    if record.get("completed") is False:
        done, lr = len(record["steps"]["task_loss"]), record["settings"]["lr"]
        say(f"Training stopped after {done} steps: the loss was no longer finite. Try a lower --lr than {lr}.")
        say(f"Wrote the last good state to {out}")
        raise typer.Exit(1)
    if record.get("conflict_rate") is not None:
        say(f"The two gradients conflicted in {100 * record['conflict_rate']:.0f} % of the steps after the first.")
    trust = "" if is_known_model(record["model"]["name"], record["model"]["pretrained"]) else " --trust"
    say(f"Wrote {out}. Next: prograd-fast predict {out} PICTURE...{trust}")
