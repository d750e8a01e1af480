"""The command `train`."""

import json
import reprlib
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from prograd_fast.cli.folders import cache_folder, check_writable
from prograd_fast.cli.folds import check_folds, train_folds
from prograd_fast.cli.matching import check_match
from prograd_fast.cli.models import open_model
from prograd_fast.cli.one_run import OneRun
from prograd_fast.cli.options import Cache, Data, Device, MaxMemory, Model, NoCache, Precision, Pretrained, Views
from prograd_fast.cli.pictures import open_pictures
from prograd_fast.cli.run_folder import check_what_is_there
from prograd_fast.terminal.output import console, say

_METHOD = "Adapt the model by this method. `prograd-fast methods` lists all methods."
_PRESET = "Take these published settings. `prograd-fast methods` lists the presets of each method."
_PARTITION = (
    "Learn a random half of the classes (base) and test on both halves. N chooses the halves. Default: 0 for an "
    "embedded set. The default for a folder is to learn all classes."
)
_SHOTS = "Learn from so many pictures per class, or from all."
_TEST_SHARE = "Test on this share of a folder's pictures. Default: 0.4."
_FOLDS = "Train K times, with another part of the folder for the test each time, and report mean and spread."
_CTX_INIT = 'Start from these words before the class name, and give them to the teacher. Default: "a picture of a".'
_N_CTX = "Tune so many context tokens. Default: as many as the words have."
_LR = "Start SGD at this learning rate. Default: 0.03, chosen for emoji-lite."
_EPOCHS = "Pass over the pictures so many times. By default, each pass is one step. Default: 100."
_SET = "Change any other setting of the method. You can repeat this option."
_ACCUMULATE = "Send each batch through the text tower in N parts. This divides the memory by N."
_PATIENCE = "Stop after so many epochs without a better validation accuracy, and keep the best epoch."


def train(
    data: Data,
    out: Annotated[Path, Option(metavar="RUN", help="Write record.json and prompt.safetensors to this folder.")],
    method: Annotated[str, Option(metavar="NAME", help=_METHOD)] = "prograd",
    preset: Annotated[str | None, Option(metavar="NAME", help=_PRESET)] = None,
    shots: Annotated[str, Option(metavar="N|all", help=_SHOTS)] = "16",
    seed: Annotated[int, Option(min=0, help="Draw these pictures with this random seed.")] = 0,
    test_share: Annotated[float | None, Option(metavar="X", help=_TEST_SHARE)] = None,
    folds: Annotated[int | None, Option(min=2, metavar="K", help=_FOLDS)] = None,
    partition: Annotated[int | None, Option(min=0, metavar="N", help=_PARTITION)] = None,
    all_classes: Annotated[bool, Option("--all-classes", help="Learn all classes of an embedded set.")] = False,
    ctx_init: Annotated[str | None, Option(metavar="WORDS", help=_CTX_INIT)] = None,
    n_ctx: Annotated[int | None, Option(min=1, help=_N_CTX)] = None,
    lr: Annotated[float | None, Option(help=_LR)] = None,
    epochs: Annotated[int | None, Option(min=1, help=_EPOCHS)] = None,
    settings: Annotated[list[str] | None, Option("--set", metavar="NAME=VALUE", help=_SET)] = None,
    model: Model = "emoji-lite",
    pretrained: Pretrained = None,
    device: Device = None,
    cache: Cache = None,
    no_cache: NoCache = False,
    precision: Precision = "fp32",
    max_memory: MaxMemory = None,
    accumulate: Annotated[int, Option(min=1, metavar="N", help=_ACCUMULATE)] = 1,
    patience: Annotated[int | None, Option(min=1, help=_PATIENCE)] = None,
    views: Views = None,
    log: Annotated[Path | None, Option(metavar="DIR", help="Log every step to this folder for TensorBoard.")] = None,
    resume: Annotated[bool, Option("--resume", help="Continue the stopped run in RUN.")] = False,
    force: Annotated[bool, Option("--force", help="Replace an earlier run in RUN.")] = False,
) -> None:
    """Adapt a model to a few pictures per class, test it, and save what it learned with a record of the run.

    Example: [bold]prograd-fast train --data my_pictures --method prograd --shots 16 --out runs/mine[/bold]

    my_pictures has one folder of pictures per class. A file classes.txt can name the classes: it has a line
    "FOLDER readable name" for each folder.
    """
    from prograd_fast import data as picture_sets
    from prograd_fast.methods import method_named
    from prograd_fast.training import TrainOptions

    check_writable(out)
    feature_cache = cache_folder(cache, no_cache)
    _refuse_both(("--resume", resume), ("--force", force))
    _refuse_both(("--test-share", test_share is not None), ("--folds", folds is not None))
    _refuse_both(("--partition", partition is not None), ("--all-classes", all_classes))
    if folds is None:
        check_what_is_there(out, resume, force)
    else:
        check_folds(out, folds, resume, force)
    if log is not None:
        check_writable(log, "--log")
    options = TrainOptions(precision, accumulate, patience, views)
    named = {"ctx_init": ctx_init, "n_ctx": n_ctx, "lr": lr, "epochs": epochs}
    given = {name: value for name, value in named.items() if value is not None}
    tuning = method_named(method, given | _parse_settings(settings or []), preset)
    n_shots = _parse_shots(shots)
    split: dict[str, Any] = {} if test_share is None else {"test_share": test_share}
    pictures = open_pictures(data, **(split if folds is None else {"fold": (0, folds)}))
    if data in picture_sets.EMBEDDED and not all_classes:
        partition = partition or 0
    clip = open_model(model, pretrained, device, max_memory)
    check_match(clip, [pictures], [tuning])
    one = OneRun(tuning, clip, n_shots, seed, partition, options, feature_cache, resume, force)
    if folds is None:
        _report(out, one.train(pictures, out, log))
    else:
        train_folds(one, data, folds, out, log)


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
