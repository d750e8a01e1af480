"""Predictions as a table for the terminal, rows for a spreadsheet, JSON, and a page with thumbnails."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from PIL import Image

from prograd_fast.files.writing import replacing
from prograd_fast.report.document import document
from prograd_fast.report.html import Html, tag
from prograd_fast.report.page_charts import data_uri
from prograd_fast.terminal.output import Table
from prograd_fast.training import Predictions, Record, picture_files

SIDE = 192  # pixels of a thumbnail at most


def predictions_table(found: Predictions, most: int | None = None) -> Table:
    """A row for each picture, at most so many: its name, and its most probable classes with percentages."""
    table = Table("picture", *(f"{rank + 1}." for rank in range(found.top.shape[1])))
    for file, ranked in list(_ranked(found))[:most]:
        table.add_row(str(file), *(f"{name} {100 * probability:.1f}" for name, probability in ranked))
    return table


def prediction_rows(found: Predictions) -> Iterator[Sequence[object]]:
    """The header, and a row for each picture; those that cannot be read come last and have an error."""
    k = found.top.shape[1]
    yield ["picture", *(f"{what}_{rank + 1}" for rank in range(k) for what in ("class", "probability")), "error"]
    for file, ranked in _ranked(found):
        yield [file, *(cell for name, probability in ranked for cell in (name, f"{probability:.6g}")), ""]
    for file, reason in found.unreadable.items():
        yield [file, *[""] * (2 * k), reason]


def prediction_record(found: Predictions) -> Record:
    """The same in JSON's types."""
    read = [
        {"picture": str(file), "classes": [{"name": name, "probability": p} for name, p in ranked]}
        for file, ranked in _ranked(found)
    ]
    return {
        "class_names": list(found.class_names),
        "pictures": read,
        "unreadable": [{"picture": str(file), "error": reason} for file, reason in found.unreadable.items()],
    }


def write_predictions_page(path: Path, found: Predictions, title: str) -> None:
    """Write one HTML page that needs nothing beside itself: a thumbnail, name and classes of each picture.

    Raises:
        OSError: the page cannot be written; see `replacing`.
    """
    sections = [
        tag("div", *(_figure(file, ranked) for file, ranked in _ranked(found)), class_="thumbnails predictions")
    ]
    if found.unreadable:
        reasons = (tag("li", reason) for reason in found.unreadable.values())
        sections += [tag("h2", f"Pictures that cannot be read: {len(found.unreadable)}"), tag("ul", *reasons)]
    page = document(title, "Written by prograd-fast predict.", sections)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _figure(file: Path, ranked: Sequence[tuple[str, float]]) -> Html:
    """A picture and its classes; no thumbnail where the file has gone since it was looked at."""
    image: Html | None = None
    with suppress(ValueError):
        picture = picture_files([file]).open(0)
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        image = tag("img", src=data_uri(picture, "JPEG", quality=80), alt="", loading="lazy")
    classes = tag("ol", *(tag("li", f"{name} {100 * probability:.1f} %") for name, probability in ranked))
    return tag("figure", image or tag("span", "no picture", class_="gone"), tag("figcaption", file, classes))


def _ranked(found: Predictions) -> Iterator[tuple[Path, list[tuple[str, float]]]]:
    """Each picture with the names of its classes and their probabilities."""
    for file, top, probabilities in zip(found.files, found.top.tolist(), found.probabilities.tolist(), strict=True):
        yield file, [(found.class_names[label], value) for label, value in zip(top, probabilities, strict=True)]
