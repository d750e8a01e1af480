"""One HTML page about runs and comparisons, which needs nothing beside it: no network, no other file."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prograd_fast.files.reading import check_kinds, read_json
from prograd_fast.files.writing import replacing
from prograd_fast.report.document import document
from prograd_fast.report.html import Html, Number, percent, table, tag
from prograd_fast.report.page_grid import grid_section
from prograd_fast.report.page_pictures import Thumbnails
from prograd_fast.report.page_run import method_of, run_section, title_of
from prograd_fast.report.statistics import Spread
from prograd_fast.training import Record

_RECORD, _RESULTS = "record.json", "results.json"
_MODEL = {"model.name": str, "data.name": str, "data.class_names": list}
_KINDS = {
    _RECORD: {"method": str, "settings": dict, "accuracy": dict, "pictures": dict, "trained_classes": list, **_MODEL},
    _RESULTS: {"runs": list, **_MODEL},
}


def write_page(folders: Sequence[Path], out: Path) -> None:
    """Write a page about runs of `train` and grids of `compare`.

    Args:
        folders: each with a record.json, a results.json, or folds that have a record.json. Nothing else is read but
            the pictures of a comparison, and test pictures for thumbnails.
        out: the HTML file.

    Raises:
        ValueError: a folder is neither, or its record is damaged: names it.
        OSError: the file cannot be written.
    """
    thumbnails, sections, runs = Thumbnails(), [], []
    named = [(one, name) for folder in folders for one, name in _named(folder)]
    for number, (folder, name) in enumerate(named, start=1):
        anchor = f"part-{number}"
        kind, record = _read(folder)
        with _naming(folder / kind):
            if kind == _RESULTS:
                sections.append(grid_section(name, anchor, record, folder))
            else:
                sections.append(run_section(name, anchor, record, thumbnails))
                runs.append((name, anchor, record))
    overview = [_overview(runs)] if len(runs) > 1 else []
    title = title_of(runs[0][2]) if len(sections) == len(runs) == 1 else _counted(len(sections))
    note = "Written by prograd-fast report. Click on a column's header to sort by it."
    page = document(title, note, [*overview, *sections])
    with replacing(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _counted(n: int) -> str:
    return "Comparison" if n == 1 else f"{n} results"


def _named(folder: Path) -> list[tuple[Path, str]]:
    """A folder with its name, or the runs of `train --folds` in it, in their order."""
    name = folder.resolve().name
    folds = [file.parent for file in folder.glob(f"fold*/{_RECORD}") if file.parent.name[4:].isdecimal()]
    folds.sort(key=lambda fold: int(fold.name[4:]))
    return [(fold, f"{name}/{fold.name}") for fold in folds] or [(folder, name)]


def _read(folder: Path) -> tuple[str, Record]:
    """The kind of a folder, by the file that it has, and its content; ValueError if it has neither."""
    for kind, kinds in _KINDS.items():
        try:
            record = read_json(folder / kind)
            check_kinds(record, kinds)
            return kind, record
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder / kind} cannot be used: {error}; run it again") from error
    raise ValueError(
        f"{folder} has neither {_RECORD} nor {_RESULTS}; expected a folder that `train` or `compare` wrote"
    )


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """ValueError for whatever a record of another form leads to."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{file} cannot be used: {type(error).__name__}: {error}; run it again") from error


def _overview(runs: Sequence[tuple[str, str, Record]]) -> Html:
    """A line for each run, which leads to its section."""
    parts = list(dict.fromkeys(part for _, _, record in runs for part in record["accuracy"] if part != "validation"))
    rows = [
        [
            tag("a", name, href=f"#{anchor}"),
            method_of(record),
            record["data"]["name"],
            Number(str(record["shots"]), record["shots"]),
            *(percent(record["accuracy"].get(part, float("nan"))) for part in parts),
        ]
        for name, anchor, record in runs
    ]
    headers = ["run", "method", "data", "shots", *(f"{part} %" for part in parts)]
    rows += _means_of_folds(runs, parts)
    return tag("section", tag("h2", "All runs"), table(headers, rows, "Accuracy of all runs"))


def _means_of_folds(runs: Sequence[tuple[str, str, Record]], parts: Sequence[str]) -> list[list[object]]:
    """A row with mean and standard deviation for each run of `train --folds`."""
    groups: dict[str, list[Record]] = {}
    for name, _, record in runs:
        whole, slash, _ = name.rpartition("/")
        if slash:  # only folds are called by their folder too
            groups.setdefault(whole, []).append(record)
    rows: list[list[object]] = []
    for name, folds in groups.items():
        means = []
        for part in parts:
            values = [record["accuracy"][part] for record in folds if part in record["accuracy"]]
            spread = Spread.of(values) if values else Spread.of([float("nan")])
            shown = f"{100 * spread.mean:.1f} ± {100 * spread.sd:.1f}" if spread.n > 1 else percent(spread.mean).shown
            means.append(Number(shown, spread.mean))
        first = folds[0]
        label = f"{name}, mean ± standard deviation of {len(folds)} folds"
        rows.append(
            [label, method_of(first), first["data"]["name"], Number(str(first["shots"]), first["shots"]), *means]
        )
    return rows
