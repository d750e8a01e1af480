"""The command `train`."""

import json
import reprlib
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from prograd_fast.cli.folders import cache_folder, check_writable
from prograd_fast.cli.models import check_text_tower, open_model
from prograd_fast.cli.options import Cache, Data, Device, MaxMemory, Model, NoCache, Precision, Pretrained, Views
from prograd_fast.cli.pictures import open_pictures
from prograd_fast.terminal import interrupts
from prograd_fast.terminal.output import console, progress, say
from prograd_fast.terminal.printable import printable

_METHOD = "Adapt the model by this method. `prograd-fast methods` lists all methods."
_PRESET = "Take these published settings. `prograd-fast methods` lists the presets of each method."
_PARTITION = (
    "Learn a random half of the classes (base) and test on both halves. N chooses the halves. Default: 0 for an "
    "embedded set. The default for a folder is to learn all classes."
)
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
    shots: Annotated[int, Option(min=1, help="Learn from so many pictures per class.")] = 16,
    seed: Annotated[int, Option(min=0, help="Draw these pictures with this random seed.")] = 0,
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
    from prograd_fast.training import CHECKPOINT, TrainOptions, make_plan, run_facts, tensorboard, train_method

    check_writable(out)
    feature_cache = cache_folder(cache, no_cache)
    _check_what_is_there(out, resume, force)
    if log is not None:
        check_writable(log, "--log")
    options = TrainOptions(precision, accumulate, patience, views)
    if partition is not None and all_classes:
        raise ValueError("--partition and --all-classes exclude each other")
    named = {"ctx_init": ctx_init, "n_ctx": n_ctx, "lr": lr, "epochs": epochs}
    given = {name: value for name, value in named.items() if value is not None}
    tuning = method_named(method, given | _parse_settings(settings or []), preset)
    pictures = open_pictures(data)
    if data in picture_sets.EMBEDDED and not all_classes:
        partition = partition or 0
    plan = make_plan(pictures, shots, seed, partition)
    clip = open_model(model, pretrained, device, max_memory)
    check_text_tower(clip, [tuning])
    if resume and _is_finished(out, run_facts(tuning, clip, pictures, plan, options)):
        say(f"{out} is finished: nothing is left to do.")
        return
    learned, found = len(plan.train.classes), len(plan.train.rows)
    say(f"{clip.name} on {clip.device}: {learned} of {len(pictures.class_names)} classes, {found} pictures")
    if found < learned * shots:
        say(f"Some classes have fewer than {shots} pictures to learn from: {learned * shots - found} are missing.")

    checkpoint = out / CHECKPOINT
    if force:
        checkpoint.unlink(missing_ok=True)
    interrupts.hint = lambda: printable(f"; --resume goes on from {checkpoint}") if checkpoint.exists() else ""
    with progress() as track, nullcontext() if log is None else tensorboard(log) as write:
        record, learner = train_method(tuning, clip, pictures, plan, track, feature_cache, options, checkpoint, write)
    _save(out, record, learner)
    say(f"Accuracy in % ({100 / learned:.1f} by guessing):")
    _report(out, record)


def _check_what_is_there(out: Path, resume: bool, force: bool) -> None:
    """ValueError where `out` holds an earlier run, an unfinished one, or a folder in the place of a file."""
    from prograd_fast.training import CHECKPOINT, RUN_FILES

    if resume and force:
        raise ValueError("--resume and --force exclude each other")
    for file in (out / name for name in (*RUN_FILES, CHECKPOINT)):
        if file.is_dir():
            raise ValueError(f"cannot write {file}: a folder of this name is there; choose another --out")
    if force or resume:
        return
    if any((out / name).exists() for name in RUN_FILES):
        raise ValueError(f"{out} holds an earlier run; choose another --out, or --force to replace it")
    if (out / CHECKPOINT).exists():
        raise ValueError(f"{out} holds an unfinished run; --resume to go on with it, --force to begin anew")


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


def _is_finished(out: Path, facts: dict[str, Any]) -> bool:
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


def _save(out: Path, record: dict[str, Any], learner: Any) -> None:
    """Write the run, then remove its checkpoint."""
    from prograd_fast.training import CHECKPOINT, save_run

    checkpoint = out / CHECKPOINT
    with interrupts.Held():
        try:
            save_run(out, record, learner)
        except OSError as error:
            again = f"go on from {checkpoint} with --resume" if checkpoint.exists() else "run it again"
            raise OSError(f"{error}; then {again}: the numbers will be the same") from error
        checkpoint.unlink(missing_ok=True)


def _report(out: Path, record: dict[str, Any]) -> None:
    """Print the accuracies beside those of zero-shot, and how the training went."""
    from prograd_fast.methods import ZeroShot
    from prograd_fast.report import accuracy_table
    from prograd_fast.training import is_known_model

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
