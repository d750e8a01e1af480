"""The commands `evaluate` and `predict`, which use what `train` wrote."""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from prograd_fast.cli.folders import cache_folder
from prograd_fast.cli.models import open_model_of
from prograd_fast.cli.options import Cache, Data, Device, NoCache, OtherModel, OtherWeights, Run, Trust
from prograd_fast.cli.pictures import open_pictures
from prograd_fast.terminal.output import Table, console, progress, say


def evaluate(
    run: Run,
    data: Data,
    model: OtherModel = None,
    pretrained: OtherWeights = None,
    trust: Trust = False,
    device: Device = None,
    cache: Cache = None,
    no_cache: NoCache = False,
) -> None:
    """Test a run on the test pictures of any set, among the classes of that set.

    Example: [bold]prograd-fast evaluate runs/mine --data clipart[/bold]
    """
    from prograd_fast.report import accuracy_table
    from prograd_fast.training import evaluate_run, load_run

    feature_cache = cache_folder(cache, no_cache)
    record, learned = load_run(run)
    pictures = open_pictures(data)
    clip = open_model_of(run, record, model, pretrained, trust, device)
    with progress() as track:
        accuracies = evaluate_run(record, learned, clip, pictures, track, feature_cache)
    rows: list[dict[str, Any]] = [{"method": name, "accuracy": values} for name, values in accuracies.items()]
    n = len(pictures.class_names)
    say(f"Accuracy in % on the {n} classes of {data} ({100 / n:.1f} by guessing):")
    console.print(accuracy_table(rows, list(rows[0]["accuracy"])))


def predict(
    run: Run,
    pictures: Annotated[list[Path], Argument(metavar="PICTURE...", help="Read these picture files.")],
    top: Annotated[int, Option(min=1, help="Show so many classes for each picture.")] = 3,
    model: OtherModel = None,
    pretrained: OtherWeights = None,
    trust: Trust = False,
    device: Device = None,
) -> None:
    """Tell what pictures show, among all classes of the set that the run was trained on.

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
