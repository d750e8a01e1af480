"""The tables and pictures at the end of a comparison."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from prograd_fast.files.writing import replacing
from prograd_fast.report.figures import conflict_figure, cost_figure, plane_figure, shots_figure
from prograd_fast.report.tables import shots_rows, shots_table
from prograd_fast.terminal.output import plain
from prograd_fast.terminal.printable import printable
from prograd_fast.training import Record, write_json

_MAIN = ("all", "base", "new", "harmonic mean", "balanced", "long-tail")  # shown first, and in the terminal


def report_comparison(results: Record, out: Path, console: Console) -> None:
    """Print the table of a grid, and write it with its pictures.

    Writes `results.json` (every record, accuracies un-rounded), `tables.md`, `shots.png` (where there are several
    numbers of shots), `plane.png` (base and new classes), `conflict.png` (two gradients) and `cost.png`.

    Args:
        results: from `run_grid`.
        out: existing folder; older files of these names are replaced.
        console: where the table goes.
    """
    runs = results["runs"]
    most = max(run["shots"] for run in runs)
    at_most = [run for run in runs if run["shots"] == most]
    about, parts = description(results), parts_of(runs)

    def title(what: str, runs: Sequence[Record]) -> str:
        data = description({**results, "runs": runs}).data
        return f"{what}\n" + printable(f"Model {results['model']['name']}, {data[0].lower()}{data[1:-1]}")

    main = [part for part in _MAIN if part in parts] + [part for part in results["elsewhere"] if part in parts]
    console.print(plain(" ".join(filter(None, about))), soft_wrap=True)
    console.print(shots_table(runs, main))

    write_json(out / "results.json", results)
    header = ["method", "shots", *parts]
    lines = [header, ["---"] * len(header), *shots_rows(runs, parts)]
    with replacing(out / "tables.md") as temporary:
        text = "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)
        temporary.write_text("\n\n".join([*map(printable, filter(None, about)), text]) + "\n", encoding="utf-8")
    written = ["results.json", "tables.md"]
    if len({run["shots"] for run in runs}) > 1:
        shots_figure(runs, main, out / "shots.png", title("Accuracy against shots; bars: 95 % intervals", runs))
        written.append("shots.png")
    if {"base", "new"} <= set(parts):
        what = "Base against new classes; arms: 95 % intervals, curves: equal harmonic mean"
        plane_figure(at_most, out / "plane.png", title(what, at_most))
        written.append("plane.png")
    what = "The two gradients before projection. Left: median of the runs and their middle half; right: mean"
    if conflict_figure(at_most, out / "conflict.png", title(what, at_most)):
        written.append("conflict.png")
    cost_figure(at_most, out / "cost.png", title("Cost; bars: median, dots: the runs", at_most))
    written.append("cost.png")
    console.print(plain(f"Wrote {', '.join(written)} in {out}"), soft_wrap=True)


def _cell(text: str) -> str:
    """A name in a Markdown table."""
    return printable(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


class Description(NamedTuple):
    """The sentences that stand with every table and picture."""

    model: str
    data: str
    reading: str
    notes: str


def description(results: Record) -> Description:
    """Model, transforms and precision; data, protocol, shots and seeds; how to read a cell; what was left out."""
    runs, model = results["runs"], results["model"]
    partitions = {run["partition"] for run in runs} - {None}
    imbalance, regime = runs[0]["imbalance"], runs[0]["regime"]
    protocol = "all classes learned"
    if partitions:
        protocol = f"base and new classes, partitions {_listed(partitions)}"
    elif imbalance is not None:
        protocol = f"all classes learned, long-tailed, imbalance {imbalance:g}"
    views = {None: "pictures as they are", 0: "a new random crop and flip at every epoch"}.get(
        regime["views"], f"{regime['views']} random crops and flips in turn"
    )
    weights = f" ({model['pretrained']})" if model["pretrained"] else ""
    shots, seeds = (_listed({run[name] for run in runs}) for name in ("shots", "seed"))
    return Description(
        f"Model {model['name']}{weights}, transform {model['transform']}; training on {views}, {regime['precision']}.",
        f"Data {results['data']['name']}; {protocol}; shots {shots}; seeds {seeds}.",
        "Test accuracy in %: mean ± half of the mean's 95 % interval (Student's t), standard deviation in brackets. "
        "The runs share test pictures and model: the intervals tell how much hangs on classes and shots drawn.",
        _notes(results),
    )


def _notes(results: Record) -> str:
    """Sentences on runs and test pictures that a reader would miss otherwise."""
    runs, teacher = results["runs"], results.get("teacher")  # none in files of before
    notes = []
    if teacher is not None:
        weights = f" ({teacher['pretrained']})" if teacher["pretrained"] else ""
        names = ", ".join(teacher["methods"])
        notes.append(f"The general loss of {names} is that to the zero-shot logits of {teacher['name']}{weights}.")
    notes += [
        f"No class has more pictures for {shots} shots than for {twin}: the runs with {twin} stand for both."
        for shots, twin in results["equal_shots"].items()
    ]
    short = {run["shots"] for run in runs if run["pictures"]["train"] < run["shots"] * len(run["trained_classes"])}
    if short and runs[0]["imbalance"] is None:
        notes.append(f"Some classes have fewer pictures than {_listed(short)} shots.")
    left_out: dict[str, int] = {}
    for run in runs:
        for part, n in run["left_out"].items():
            left_out[part] = max(n, left_out.get(part, 0))
    if left_out:
        lost = ", ".join(f"{n} of {part}" for part, n in left_out.items())
        notes.append(f"Test pictures are left out where the same picture is learned from: at most {lost}.")
    return " ".join(notes)


def parts_of(runs: Sequence[Record]) -> list[str]:
    """Every accuracy that a run has, validation apart."""
    found = dict.fromkeys(part for run in runs for part in run["accuracy"] if part != "validation")
    return [part for part in _MAIN if part in found] + [part for part in found if part not in _MAIN]


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
