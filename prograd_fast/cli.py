"""The command `prograd-fast`.

open_clip, scikit-learn and matplotlib take seconds to import: only commands do, so that help and mistakes are quick.
"""

import json
import logging
import reprlib
import sys
import traceback
import warnings
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from prograd_fast import interrupts
from prograd_fast.cli_compare import compare
from prograd_fast.cli_parts import (
    Cache,
    Data,
    Device,
    MaxMemory,
    Model,
    NoCache,
    Precision,
    Pretrained,
    RunModel,
    RunPretrained,
    Trust,
    Views,
    cache_folder,
    check_text_tower,
    check_writable,
    console,
    open_model,
    open_model_of,
    say,
)
from prograd_fast.printable import message_line, printable
from prograd_fast.terminal import Table, progress

app = typer.Typer(add_completion=False, rich_markup_mode="rich")
# What typer raises for wrong usage. Newer typers carry a click of their own, so the class has no one address.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder written by train.")]


_DEBUG = "--debug"


def main() -> None:
    """`run` with the arguments of this process, and its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command.

    `--debug`, anywhere before a `--`, shows the traceback where it fails.

    Returns:
        The exit code: 0; 2 for wrong input and 1 for all else that fails, after one line on stderr; 130 or 143 after
        SIGINT or SIGTERM, of which the process tells at its end.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = [argument for argument in arguments[:end] if argument != _DEBUG]
    debug = len(options) < end
    interrupts.hint = str
    logging.lastResort = _Warnings(logging.WARNING)
    # a picture is read or refused; what Pillow thinks of it in between names no file
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        # not app(...), which makes of KeyboardInterrupt an exit code
        command = typer.main.get_command(app)
        with command.make_context("prograd-fast", [*options, *arguments[end:]] or ["--help"]) as context:
            command.invoke(context)
        return 0
    except typer.Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, typer.Abort) as error:
        return getattr(error, "code", 130)
    except (_UsageError, ValueError, OSError, ImportError) as error:
        failure: Exception = error
        code, message = 2, getattr(error, "format_message", error.__str__)()
    except Exception as error:
        failure = error
        code, message = 1, _last_resort(error, debug)
    if debug:
        for line in "".join(traceback.format_exception(failure)).splitlines():
            print(printable(line), file=sys.stderr)
    print(f"prograd-fast: {message_line(message)}", file=sys.stderr)
    return code


class _Warnings(logging.Handler):
    """Warnings of the library as lines on stderr, where nobody has set up logging."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        print(message_line(record.getMessage()), file=sys.stderr)


def _last_resort(error: Exception, debug: bool) -> str:
    what = f"{type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, MemoryError) or "out of memory" in what or "allocate memory" in what:
        return f"out of memory ({what}); train on fewer pictures or classes at once (--max-memory, --accumulate)"
    shown = "" if debug else f"; {_DEBUG} shows where"
    return f"{what}. This is a mistake in prograd-fast, or in a package that it uses{shown}. Please report it."


@app.callback()
def options(
    debug: Annotated[bool, typer.Option(_DEBUG, help="Show the traceback where a command fails.")] = False,
) -> None:
    """Adapt a CLIP model to a few pictures per class, and keep what it knew."""


@app.command()
def train(
    data: Data,
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder for the run: record.json and prompt.safetensors.")],
    method: Annotated[
        str, typer.Option(metavar="NAME", help="How to adapt the model: a name that `prograd-fast methods` lists.")
    ] = "prograd",
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Published settings of the method, see `prograd-fast methods`.")
    ] = None,
    shots: Annotated[int, typer.Option(min=1, help="Pictures per class to learn from.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Which random draw of these pictures.")] = 0,
    partition: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Learn a random half of the classes (base) and test on both halves: which halves. Default: 0 for the "
            "embedded sets; of a folder, all classes are learned.",
        ),
    ] = None,
    all_classes: Annotated[bool, typer.Option("--all-classes", help="Learn all classes of an embedded set.")] = False,
    ctx_init: Annotated[
        str | None,
        typer.Option(
            help='Words before the class name: teacher\'s prompt and start of the tuned one. Default: "a picture of a".'
        ),
    ] = None,
    n_ctx: Annotated[
        int | None, typer.Option(min=1, help="Context tokens. Default: as many as the words have.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="First learning rate of SGD. Default: 0.03, chosen for emoji-lite.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the pictures, by default one step each. Default: 100.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other setting of the method; may be given repeatedly."),
    ] = None,
    model: Model = "emoji-lite",
    pretrained: Pretrained = None,
    device: Device = None,
    cache: Cache = None,
    no_cache: NoCache = False,
    precision: Precision = "fp32",
    max_memory: MaxMemory = None,
    accumulate: Annotated[
        int, typer.Option(min=1, help="Parts in which a batch goes through the text tower, in as much less memory.")
    ] = 1,
    patience: Annotated[
        int | None,
        typer.Option(min=1, help="Stop after so many epochs without a better validation accuracy, keep the best."),
    ] = None,
    views: Views = None,
    log: Annotated[Path | None, typer.Option(metavar="DIR", help="Log every step for TensorBoard.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run in RUN was stopped.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier run in RUN.")] = False,
) -> None:
    """Adapt a model to a few pictures per class, test it, and write a run record and what was learned.

    Example: [bold]prograd-fast train --data my_pictures --method prograd --shots 16 --out runs/mine[/bold]

    my_pictures has one folder of pictures per class and optionally classes.txt, a line "FOLDER readable name" for each.
    """
    from prograd_fast import data as picture_sets
    from prograd_fast.methods import GradientMethod, method_named
    from prograd_fast.report import accuracy_table
    from prograd_fast.training import (
        CHECKPOINT,
        RUN_FILES,
        TrainOptions,
        difference_to,
        is_known_model,
        make_plan,
        run_facts,
        save_run,
        tensorboard,
        train_method,
    )

    check_writable(out)
    kept = cache_folder(cache, no_cache)
    checkpoint = out / CHECKPOINT
    if resume and force:
        raise ValueError("--resume and --force exclude each other")
    for file in (out / name for name in (*RUN_FILES, CHECKPOINT)):
        if file.is_dir():
            raise ValueError(f"cannot write {file}: a folder of this name is there; choose another --out")
    if not (force or resume):
        if any((out / name).exists() for name in RUN_FILES):
            raise ValueError(f"{out} holds an earlier run; choose another --out, or --force to replace it")
        if checkpoint.exists():
            raise ValueError(f"{out} holds an unfinished run; --resume to go on with it, --force to begin anew")
    if log is not None:
        check_writable(log, "--log")
    training = TrainOptions(precision, accumulate, patience, views)
    if partition is not None and all_classes:
        raise ValueError("--partition and --all-classes exclude each other")
    options = {"ctx_init": ctx_init, "n_ctx": n_ctx, "lr": lr, "epochs": epochs}
    given = {name: value for name, value in options.items() if value is not None}
    tuning = method_named(method, given | _settings(settings or []), preset)
    pictures = picture_sets.load(data)
    if data in picture_sets.EMBEDDED and not all_classes:
        partition = partition or 0
    plan = make_plan(pictures, shots, seed, partition)
    clip = open_model(model, pretrained, device, max_memory)
    check_text_tower(clip, [tuning])
    if resume and (out / RUN_FILES[0]).exists():
        facts = run_facts(tuning, clip, pictures, plan, training)
        try:
            other = difference_to(out, facts)
        except ValueError as error:
            other = str(error)
        if other is None:
            checkpoint.unlink(missing_ok=True)
            say(f"{out} is finished: nothing is left to do.")
            return
        if not checkpoint.exists():  # with one, this run was to replace the other
            raise ValueError(f"{out} holds no run to resume: {other}; choose another --out, or --force to replace it")
    learned, found = len(plan.train.classes), len(plan.train.rows)
    say(f"{clip.name} on {clip.device}: {learned} of {len(pictures.class_names)} classes, {found} pictures")
    if found < learned * shots:
        say(f"Some classes have fewer than {shots} pictures to learn from: {learned * shots - found} are missing.")

    if force:
        checkpoint.unlink(missing_ok=True)
    interrupts.hint = lambda: printable(f"; --resume goes on from {checkpoint}") if checkpoint.exists() else ""
    with progress() as track, nullcontext() if log is None else tensorboard(log) as write:
        record, learner = train_method(tuning, clip, pictures, plan, track, kept, training, checkpoint, write)
    with interrupts.Held():
        try:
            save_run(out, record, learner)
        except OSError as error:
            again = f"go on from {checkpoint} with --resume" if checkpoint.exists() else "run it again"
            raise OSError(f"{error}; then {again}: the numbers will be the same") from error
        checkpoint.unlink(missing_ok=True)
    rows = [record]
    if method != "zero-shot":
        rows.insert(0, {"method": "zero-shot", "accuracy": record["zero_shot_accuracy"]})
    say(f"Accuracy in % ({100 / learned:.1f} by guessing):")
    console.print(accuracy_table(rows, list(record["accuracy"])))
    if isinstance(tuning, GradientMethod) and not record["completed"]:
        done = len(record["steps"]["task_loss"])
        say(f"Training stopped after {done} steps: the loss was no longer finite. Try a lower --lr than {tuning.lr}.")
        say(f"Wrote the last good state to {out}")
        raise typer.Exit(1)
    if record.get("conflict_rate") is not None:
        say(f"The two gradients conflicted in {100 * record['conflict_rate']:.0f} % of the steps after the first.")
    trust = "" if is_known_model(clip.name, clip.pretrained) else " --trust"
    say(f"Wrote {out}. Next: prograd-fast predict {out} PICTURE...{trust}")


@app.command()
def methods() -> None:
    """List the methods, their settings and the published settings that `train --preset` takes."""
    from prograd_fast.methods import METHODS

    table = Table("method", "settings and defaults", "presets")
    for method in METHODS:
        table.add_row(method.name, ", ".join(method.defaults()), ", ".join(method.presets) or "-")
    console.print(table)


def _settings(given: list[str]) -> dict[str, object]:
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


@app.command()
def evaluate(
    run: Run,
    data: Data,
    model: RunModel = None,
    pretrained: RunPretrained = None,
    trust: Trust = False,
    device: Device = None,
    cache: Cache = None,
    no_cache: NoCache = False,
) -> None:
    """Test what train wrote on the test pictures of any set, among that set's classes.

    Example: [bold]prograd-fast evaluate runs/mine --data clipart[/bold]
    """
    from prograd_fast import data as picture_sets
    from prograd_fast.report import accuracy_table
    from prograd_fast.training import evaluate_run, load_run

    kept = cache_folder(cache, no_cache)
    record, learned = load_run(run)
    pictures = picture_sets.load(data)
    clip = open_model_of(run, record, model, pretrained, trust, device)
    with progress() as track:
        accuracies = evaluate_run(record, learned, clip, pictures, track, kept)
    rows: list[dict[str, Any]] = [{"method": name, "accuracy": values} for name, values in accuracies.items()]
    n = len(pictures.class_names)
    say(f"Accuracy in % on the {n} classes of {data} ({100 / n:.1f} by guessing):")
    console.print(accuracy_table(rows, list(rows[0]["accuracy"])))


@app.command()
def predict(
    run: Run,
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE...", help="Picture files.")],
    top: Annotated[int, typer.Option(min=1, help="Classes to show for each picture.")] = 3,
    model: RunModel = None,
    pretrained: RunPretrained = None,
    trust: Trust = False,
    device: Device = None,
) -> None:
    """Tell what is on pictures, with what train wrote, among all classes of the set that it was trained on.

    Example: [bold]prograd-fast predict runs/mine photo1.jpg photo2.jpg[/bold]
    """
    from prograd_fast.training import load_run, predict_files

    record, learned = load_run(run)
    clip = open_model_of(run, record, model, pretrained, trust, device)
    with progress() as track:
        class_names, probabilities = predict_files(record, learned, clip, pictures, track)
    best = probabilities.topk(min(top, len(class_names)), dim=1)
    table = Table()
    table.add_column("picture", overflow="fold")
    for rank in range(best.indices.shape[1]):
        table.add_column(f"{rank + 1}.")
    for file, labels, values in zip(pictures, best.indices.tolist(), best.values.tolist(), strict=True):
        cells = [f"{class_names[label]} {100 * value:.1f}" for label, value in zip(labels, values, strict=True)]
        table.add_row(str(file), *cells)
    say(f"Most likely of {len(class_names)} classes, probability in %:")
    console.print(table)


app.command()(compare)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for results.json, accuracy.png and conflict.png.")] = Path("demo"),
    device: Device = None,
    cache: Cache = None,
    no_cache: NoCache = False,
) -> None:
    """Show on emoji what zero-shot, a linear probe, CoOp and ProGrad do to base classes, new classes and unseen styles.

    Example: [bold]prograd-fast demo --out demo[/bold]
    """
    from prograd_fast import data as picture_sets
    from prograd_fast.methods import CoOp, LinearProbe, ProGradCoOp, ZeroShot
    from prograd_fast.report import report_demo
    from prograd_fast.training import Grid, run_grid

    check_writable(out)
    kept = cache_folder(cache, no_cache)
    pictures = picture_sets.load("emoji")
    clip = open_model("emoji-lite", None, device)
    grid = Grid([ZeroShot(), LinearProbe(), CoOp(), ProGradCoOp()], shots=[16], seeds=3, partitions=3)
    with progress() as track, TemporaryDirectory() as runs:
        results = run_grid(grid, clip, pictures, Path(runs), track, kept)
    out.mkdir(parents=True, exist_ok=True)
    report_demo(results, out, console)


@app.command()
def doctor() -> None:
    """Tell versions, devices and backends, what is missing and how to get it."""
    from prograd_fast import show_config

    print(show_config())
