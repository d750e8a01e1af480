"""The page's part about one run: its settings, accuracies beside zero-shot, learning curves, and its tests."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from prograd_fast.report.html import Html, Number, folded, join, percent, table, tag
from prograd_fast.report.page_charts import Line, interval_chart, line_chart
from prograd_fast.report.page_details import part_section
from prograd_fast.report.page_pictures import Thumbnails
from prograd_fast.report.tables import TITLES
from prograd_fast.training import Record
from prograd_fast.training.evaluation import Evaluation, wilson

_NO_DETAILS = (
    "The record of this run has no test pictures one by one, so classes, mistakes, calibration and wrong pictures are "
    "not here. Train it again with this version, or use prograd-fast evaluate."
)


def method_of(record: Record) -> str:
    """The title of a run's method, or its name where it is none of ours."""
    name = str(record["method"])
    return TITLES.get(name, name)


def title_of(record: Record) -> str:
    """A run in a few words."""
    return f"{method_of(record)} on {record['data']['name']}"


def run_section(name: str, anchor: str, record: Record, thumbnails: Thumbnails) -> Html:
    """All about a run.

    Args:
        name: of its folder.
        anchor: the section's id.
        record: of the run, maybe from a stranger.
        thumbnails: makes those of the wrong pictures.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: the record is of another form.
    """
    details = {part: Evaluation.from_record(one) for part, one in record.get("details", {}).items()}
    thumbnail = thumbnails.of(record["data"])
    order = sorted(details, key=lambda part: part == "validation")  # last, since settings may have been chosen by it
    parts = [part_section(part, details[part], thumbnail, part == order[0]) for part in order]
    return tag(
        "section",
        tag("h2", title_of(record), tag("small", name)),
        tag("dl", *(tag("div", tag("dt", key), tag("dd", value)) for key, value in _facts(record).items())),
        folded("All settings", table(["setting", "value"], list(_settings(record).items()), "Settings of the method")),
        tag("h3", "Accuracy"),
        _accuracies(record),
        tag("h3", "Learning curves"),
        _curves(record),
        tag("h3", "Tests, picture by picture"),
        *(parts or [tag("p", _NO_DETAILS)]),
        id=anchor,
    )


def _facts(record: Record) -> dict[str, str]:
    model, data = record["model"], record["data"]
    weights = f" ({model['pretrained']})" if model.get("pretrained") else ""
    partition = "" if record["partition"] is None else f" (partition {record['partition']})"
    learned = f"{record['pictures']['train']} pictures of {len(record['trained_classes'])} classes{partition}"
    seconds = sum(float(value) for value in record["seconds"].values())
    facts: dict[str, str] = {
        "date": _date(record["created"]),
        "method": method_of(record),
        "model": f"{model['name']}{weights} on {model.get('device', '–')}",
        "data": f"{data['name']}: {len(data['class_names'])} classes, {data['pictures']} pictures",
        "learned from": learned,
        "shots and seed": f"{record['shots']} per class at most, seed {record['seed']}",
        "time": f"{seconds:.0f} s",
    }
    if record.get("completed") is False:
        facts["broke off"] = "the loss was no longer finite; this is the last good state"
    return facts


def _date(created: str) -> str:
    """An ISO date to the minute."""
    return datetime.fromisoformat(created).strftime("%Y-%m-%d %H:%M %Z")


def _settings(record: Record) -> dict[str, str]:
    versions = {f"version of {name}": value for name, value in record.get("versions", {}).items()}
    return {name: str(value) for name, value in {**record["settings"], **record["regime"], **versions}.items()}


def _accuracies(record: Record) -> Html:
    """A row for each part: zero-shot and the run, with intervals and their difference."""
    zero_shot, rows = record.get("zero_shot_accuracy", {}), []
    for part, accuracy in record["accuracy"].items():
        n, before = record["pictures"].get(part), zero_shot.get(part)
        both = [(value, *_interval(value, n)) for value in (before, accuracy) if value is not None]
        _, low, high = both[-1]
        interval = "–" if n is None else f"{100 * low:.1f} to {100 * high:.1f}"
        gain = Number("–", -100.0) if before is None else Number(f"{100 * (accuracy - before):+.1f}", accuracy - before)
        rows.append(
            [
                part,
                percent(float("nan") if before is None else before),
                percent(accuracy),
                gain,
                Number(interval, low),
                Number("–" if n is None else str(n), n or 0),
                Html() if n is None else interval_chart(both, f"{part}: zero-shot and the run, with intervals"),
            ]
        )
    method = method_of(record)
    headers = ["test", "zero-shot %", f"{method} %", "gain", "95 % interval", "pictures", ""]
    note = "Wilson's 95 % intervals tell how much hangs on the test pictures. Drawn from 0 to 100 %: zero-shot hollow."
    lost = ", ".join(f"{n} of {part}" for part, n in record.get("left_out", {}).items() if n)
    if lost:
        note += f" Test pictures that were learned from are left out: {lost}."
    return join(table(headers, rows, "Accuracy of each test beside zero-shot"), tag("p", note, class_="note"))


def _interval(accuracy: float, n: int | None) -> tuple[float, float]:
    return (accuracy, accuracy) if n is None else wilson(round(accuracy * n), n)


def _curves(record: Record) -> Html:
    steps: Mapping[str, Any] = record.get("steps", {})

    def line(label: str, name: str, skip: int = 0) -> Line:
        return Line(label, [None] * skip + list(steps.get(name, []))[skip:])

    charts = [
        line_chart("Loss before each step", "step", [line("task", "task_loss"), line("general", "general_loss")]),
        line_chart("Accuracy on the pictures of each step", "step", [line("training", "accuracy")], (0, 1)),
        # at the first step the general gradient is rounding
        line_chart("Cosine of the two gradients", "step", [line("cosine", "cosine", skip=1)], (-1, 1)),
        line_chart("Accuracy on validation pictures", "epoch", [Line("validation", record.get("validation", []))]),
    ]
    drawn = [chart for chart in charts if chart]
    return tag("div", *drawn, class_="charts") if drawn else tag("p", "This method has no steps to draw.")
