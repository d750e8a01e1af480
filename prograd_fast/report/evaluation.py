"""The evaluation of a run: tables for the terminal, one row a picture for a spreadsheet, and all of it as JSON."""

from collections.abc import Iterator, Mapping, Sequence
from math import isnan

from rich.console import Console

from prograd_fast.report.tables import TITLES, table_of
from prograd_fast.terminal.output import Table, plain
from prograd_fast.training import Evaluation, Record, RunEvaluation

SHOWN = 10  # classes, pairs of classes or pictures in a table of the terminal
_MAIN = "all"  # the part of a set that has its test pictures, all styles of emoji but the unseen ones


def report_evaluation(found: RunEvaluation, console: Console) -> None:
    """Print the measures of a run beside those of zero-shot, then its worst classes, mistakes and wrong pictures.

    Tables have at most `SHOWN` rows. A line tells how many more there are.
    """
    console.print(measures_table(found.tests))
    own = found.tests[found.method]
    evaluation = own.get(_MAIN) or next(iter(own.values()))
    title = TITLES[found.method]
    worst = sorted((row for row in evaluation.per_class() if row.n), key=lambda row: (row.accuracy, -row.n))
    classes = [[row.name, row.right, row.n, _percent(row.accuracy), _range(row.low, row.high)] for row in worst]
    _print(
        console,
        f"Classes, those that {title} recognises least first:",
        table_of(["class"], ["right", "pictures", "accuracy", "95 % interval"], classes[:SHOWN]),
        len(classes),
        "classes",
    )
    names = evaluation.class_names
    pairs = [[names[pair.label], names[pair.predicted], pair.n] for pair in evaluation.confused()]
    if not pairs:
        console.print("No picture was mistaken.")
        return
    _print(
        console,
        "Classes that were mistaken for others, the most frequent mistakes first:",
        table_of(["class", "taken for"], ["pictures"], pairs[:SHOWN]),
        len(pairs),
        "pairs of classes",
    )
    wrong = evaluation.wrong()
    pictures = [
        [
            evaluation.pictures[i],
            names[evaluation.labels[i]],
            names[evaluation.predicted[i]],
            _percent(float(evaluation.confidences[i])),
        ]
        for i in wrong[:SHOWN].tolist()
    ]
    _print(
        console,
        "Wrong pictures, the most confident first:",
        table_of(["picture", "class", "taken for"], ["probability"], pictures),
        len(wrong),
        "pictures",
    )


def measures_table(tests: Mapping[str, Mapping[str, Evaluation]]) -> Table:
    """A column for each method; the accuracy on each part, and the other measures of the first one, all in percent."""
    parts = list(next(iter(tests.values())))
    rows = [[part, *(_percent(own[part].accuracy) for own in tests.values())] for part in parts]
    first = [own[parts[0]] for own in tests.values()]
    rows[1:1] = [
        ["  95 % interval", *(_range(*one.interval) for one in first)],
        ["  balanced accuracy", *(_percent(one.balanced_accuracy) for one in first)],
        ["  macro precision", *(_percent(one.macro_precision) for one in first)],
        ["  macro F1", *(_percent(one.macro_f1) for one in first)],
        ["  calibration error (ECE)", *(_percent(one.ece()) for one in first)],
    ]
    return table_of(["test"], [TITLES[method] for method in tests], rows)


def evaluation_rows(found: RunEvaluation) -> Iterator[Sequence[object]]:
    """The header, and a row for each picture of each part: what it is, and what the run's method makes of it."""
    own = found.tests[found.method]
    k = max(evaluation.top.shape[1] for evaluation in own.values())
    ranks = [f"{what}_{rank + 1}" for rank in range(k) for what in ("class", "probability")]
    yield ["test", "picture", "class", "right", *ranks]
    for part, evaluation in own.items():
        names = evaluation.class_names
        for i, picture in enumerate(evaluation.pictures):
            pairs = zip(evaluation.top[i].tolist(), evaluation.probabilities[i].tolist(), strict=True)
            cells = [cell for label, value in pairs for cell in (names[label], f"{value:.6g}")]
            yield [part, picture, names[evaluation.labels[i]], int(evaluation.right[i]), *cells]


def evaluation_record(found: RunEvaluation) -> Record:
    """Everything in JSON's types: measures, classes, confusion matrix, wrong pictures, and what each picture got."""
    return {
        "method": found.method,
        "left_out": found.left_out,
        "tests": {
            method: {part: measures(evaluation) | evaluation.to_record() for part, evaluation in parts.items()}
            for method, parts in found.tests.items()
        },
    }


def measures(evaluation: Evaluation) -> Record:
    """The measures of one evaluation in JSON's types, un-rounded in [0, 1]."""
    low, high = evaluation.interval
    return {
        "accuracy": evaluation.accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "balanced_accuracy": evaluation.balanced_accuracy,
        "macro_precision": evaluation.macro_precision,
        "macro_f1": evaluation.macro_f1,
        "ece": evaluation.ece(),
        "classes": [
            {name: None if value != value else value for name, value in row._asdict().items()}  # NaN: no pictures
            for row in evaluation.per_class()
        ],
        "calibration": [bin._asdict() for bin in evaluation.calibration()],
        "confusion": evaluation.confusion().tolist(),
        "wrong": [evaluation.pictures[i] for i in evaluation.wrong().tolist()],
    }


def _print(console: Console, title: str, table: Table, n: int, what: str) -> None:
    console.print(plain(title))
    console.print(table)
    if n > SHOWN:
        console.print(plain(f"{n - SHOWN} more {what} are in the files of --csv and --json."))


def _percent(share: float) -> str:
    return "-" if isnan(share) else f"{100 * share:.1f}"


def _range(low: float, high: float) -> str:
    return f"{_percent(low)} to {_percent(high)}"
