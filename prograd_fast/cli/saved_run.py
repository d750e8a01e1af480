"""The commands `evaluate` and `predict`, which use what `train` wrote."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from prograd_fast.cli.folders import cache_folder, check_files
from prograd_fast.cli.models import open_model_of
from prograd_fast.cli.options import Cache, Data, Device, NoCache, OtherModel, OtherWeights, Root, Run, Trust
from prograd_fast.cli.picture_files import find_pictures
from prograd_fast.cli.pictures import open_pictures, tell_contradictions
from prograd_fast.files.writing import write_csv
from prograd_fast.terminal.output import console, progress, say
from prograd_fast.terminal.printable import message_line

UNREADABLE = 3  # exit code of `predict` where pictures cannot be read
_SHOWN = 10  # pictures that cannot be read; all are counted, and in the files
_MOST_ROWS = 100  # of predictions on the terminal, where a file has them all

_PICTURES = "Read these picture files, all pictures in these folders, and all that match a pattern ('photos/*.jpg')."
_CLASSES = "Choose among the classes in this text file, trained or not: one name in each line."


def evaluate(
    run: Run,
    data: Data,
    root: Root = None,
    csv: Annotated[Path | None, Option(metavar="FILE", help="Write a row for each picture to this file.")] = None,
    json: Annotated[Path | None, Option(metavar="FILE", help="Write all results to this file.")] = None,
    model: OtherModel = None,
    pretrained: OtherWeights = None,
    trust: Trust = False,
    device: Device = None,
    cache: Cache = None,
    no_cache: NoCache = False,
) -> None:
    """Test a run on the test pictures of any set.

    Example: [bold]prograd-fast evaluate runs/mine --data new_pictures --csv results.csv[/bold]

    In a folder that the run has not learned from, all pictures are test
    pictures. The classes to choose from are those of the run, or those of the
    set if it has others, or if it is a set of the benchmark.
    """
    from prograd_fast.clip.tokens import refuse_equal_names
    from prograd_fast.data import load
    from prograd_fast.report import evaluation_record, evaluation_rows, report_evaluation
    from prograd_fast.training import evaluate_run, held_out, load_run, lost_of_learned, write_json

    feature_cache = cache_folder(cache, no_cache)
    files = check_files({"--csv": csv, "--json": json})
    record, learned = load_run(run)
    whole = open_pictures(data, root=root, whole=True)
    own = whole.folder is not None and not whole.published
    if own and whole.name == record["data"]["name"] and (lost := lost_of_learned(record, whole)):
        say(
            f"{lost} of the {len(record['learned_from'])} pictures that the run learned from are not in {data} now. "
            "Any that were changed or saved again count as new ones, which flatters the run."
        )
    pictures = held_out(record, whole, partial(load, data, root=root))
    clip = open_model_of(run, record, model, pretrained, trust, device)
    if own and pictures.folder is not None:
        refuse_equal_names(clip.tokenizer, pictures.class_names, pictures.folder)
    with progress() as track:
        found = evaluate_run(record, learned, clip, pictures, track, feature_cache)
    tell_contradictions(pictures)
    if found.left_out:
        say(f"Left out {found.left_out} pictures that the run has learned from.")
    if found.new:
        say(f"New to the run are {len(found.new)} of the {len(found.class_names)} classes: {_some(found.new)}")
    n, tested = len(found.class_names), len(next(iter(found.tests[found.method].values())))
    say(f"Accuracy in % of {tested} pictures of {data} among {n} classes ({100 / n:.1f} by guessing):")
    report_evaluation(found, console)
    _make_folders(files)
    if csv is not None:
        write_csv(csv, evaluation_rows(found))
    if json is not None:
        write_json(json, {"run": str(run), "data": data, **evaluation_record(found)})
    _say_written(files)


def predict(
    run: Run,
    pictures: Annotated[list[str], Argument(metavar="PICTURE...", help=_PICTURES)],
    top: Annotated[int, Option(min=1, metavar="N", help="Show so many classes for each picture.")] = 3,
    classes: Annotated[Path | None, Option(metavar="FILE", help=_CLASSES)] = None,
    csv: Annotated[Path | None, Option(metavar="FILE", help="Write a row for each picture to this file.")] = None,
    json: Annotated[Path | None, Option(metavar="FILE", help="Write the same as JSON.")] = None,
    html: Annotated[Path | None, Option(metavar="FILE", help="Write a page with a thumbnail of each picture.")] = None,
    model: OtherModel = None,
    pretrained: OtherWeights = None,
    trust: Trust = False,
    device: Device = None,
) -> None:
    """Tell what pictures show, among all classes of the set that the run was trained on, or among others.

    Example: [bold]prograd-fast predict runs/mine holiday/ 'scans/*.png' --csv found.csv[/bold]

    Pictures that cannot be read are listed at the end, after all others were
    predicted. Exit code: 0 if all pictures were read, 3 if some were not, 2 for
    wrong input, 1 for any other failure.
    """
    from prograd_fast.data.walk import describe_ignored
    from prograd_fast.report import prediction_record, prediction_rows, predictions_table, write_predictions_page
    from prograd_fast.training import load_run, predict_files, read_class_names, write_json

    outputs = check_files({"--csv": csv, "--json": json, "--html": html})
    record, learned = load_run(run)
    names = None if classes is None else read_class_names(classes)
    given = find_pictures(pictures)
    if note := describe_ignored(given.ignored):
        say(note)
    clip = open_model_of(run, record, model, pretrained, trust, device)
    with progress() as track:
        found = predict_files(record, learned, clip, given.files, track, names, top)
    found.unreadable.update(given.missing)
    title = f"Most likely of {len(found.class_names)} classes, probability in %"
    if found.files:
        say(f"{title}:")
        console.print(predictions_table(found, _MOST_ROWS if outputs else None))
        if outputs and len(found.files) > _MOST_ROWS:
            say(f"{len(found.files) - _MOST_ROWS} more pictures are in the file.")
    _make_folders(outputs)
    if csv is not None:
        write_csv(csv, prediction_rows(found))
    if json is not None:
        write_json(json, {"run": str(run), **prediction_record(found)})
    if html is not None:
        write_predictions_page(html, found, title)
    _say_written(outputs)
    if found.unreadable:
        _tell_unreadable(list(found.unreadable.values()), len(found.files))
        raise typer.Exit(UNREADABLE)


def _tell_unreadable(reasons: list[str], n_read: int) -> None:
    """One line on stderr for each of the first pictures that cannot be read, and a line that counts them."""
    for reason in reasons[:_SHOWN]:
        print(message_line(reason), file=sys.stderr)
    more = f", of which {_SHOWN} are listed" if len(reasons) > _SHOWN else ""
    print(f"{len(reasons)} cannot be read{more}; {n_read} were predicted.", file=sys.stderr)


def _make_folders(files: dict[str, Path]) -> None:
    for file in files.values():
        file.parent.mkdir(parents=True, exist_ok=True)


def _say_written(files: dict[str, Path]) -> None:
    if files:
        say(f"Wrote {', '.join(map(str, files.values()))}")


def _some(names: Sequence[str]) -> str:
    """Names in a line, the first five of many."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
