"""The page's part about a comparison: its table, and the pictures that `compare` drew."""

import base64
from pathlib import Path

from prograd_fast.files.reading import read_bytes
from prograd_fast.report.compare import description, parts_of
from prograd_fast.report.html import Html, Number, join, table, tag
from prograd_fast.report.statistics import Spread
from prograd_fast.report.tables import spreads
from prograd_fast.training import Record

_PICTURES = {
    "shots.png": "Accuracy against shots",
    "plane.png": "Base against new classes",
    "conflict.png": "The two gradients",
    "cost.png": "Cost",
}
_PNG, _MOST_BYTES = b"\x89PNG\r\n\x1a\n", 4 << 20


def grid_section(name: str, anchor: str, results: Record, folder: Path) -> Html:
    """All about a comparison.

    Args:
        name: of its folder.
        anchor: the section's id.
        results: of `results.json`.
        folder: which may hold the pictures.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: the results are of another form.
    """
    about = description(results)
    return tag(
        "section",
        tag("h2", f"Comparison on {results['data']['name']}", tag("small", name)),
        *(tag("p", sentence) for sentence in about if sentence),
        _accuracies(results),
        tag("h3", "Pictures"),
        _pictures(folder),
        id=anchor,
    )


def _accuracies(results: Record) -> Html:
    runs = results["runs"]
    parts = parts_of(runs)
    rows = [
        [title, Number(str(shots), shots), *(_number(spread) for spread in found)]
        for title, shots, found in spreads(runs, parts)
    ]
    return table(["method", "shots", *parts], rows, "Accuracy in % of each method and number of shots")


def _number(spread: Spread | None) -> Number:
    return Number("–", -1.0) if spread is None else Number(str(spread), spread.mean)


def _pictures(folder: Path) -> Html:
    figures = []
    for file, title in _PICTURES.items():
        try:
            content = read_bytes(folder / file, _MOST_BYTES)
        except (OSError, ValueError):
            continue
        if content.startswith(_PNG):
            source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
            figures.append(tag("figure", tag("figcaption", title), tag("img", src=source, alt=title, class_="paper")))
    missing = tag("p", "The folder has no pictures; prograd-fast compare draws them.")
    return join(*figures) if figures else missing
