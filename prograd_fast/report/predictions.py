"""Predictions as a table for the terminal, rows for a spreadsheet, JSON, and a page with thumbnails."""

import base64
from collections.abc import Iterator, Sequence
from html import escape
from io import BytesIO
from pathlib import Path

from prograd_fast.files.writing import replacing
from prograd_fast.terminal.output import Table
from prograd_fast.terminal.printable import printable
from prograd_fast.training import Predictions, Record, picture_files

_THUMBNAIL = 192  # pixels of the longer side
_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Predictions</title><style>
:root { color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif }
body { margin: 1rem auto; max-width: 75rem; padding: 0 1rem }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: 1rem }
figure { margin: 0; padding: .6rem; border: 1px solid #8886; border-radius: .5rem; overflow-wrap: anywhere }
img { display: block; margin: 0 auto .5rem; max-width: 100%; height: 12rem; object-fit: contain }
ol { margin: .3rem 0 0; padding-left: 1.4rem } li:first-child { font-weight: 600 }
</style></head><body>
"""


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
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as page:
        page.write(f"{_HEAD}<h1>{_shown(title)}</h1>\n<main>\n")
        for file, ranked in _ranked(found):
            classes = "".join(f"<li>{_shown(name)} {100 * probability:.1f} %</li>" for name, probability in ranked)
            page.write(
                f"<figure>{_thumbnail(file)}<figcaption>{_shown(file)}<ol>{classes}</ol></figcaption></figure>\n"
            )
        page.write("</main>\n")
        if found.unreadable:
            reasons = "".join(f"<li>{_shown(reason)}</li>" for reason in found.unreadable.values())
            page.write(f"<h2>Pictures that cannot be read: {len(found.unreadable)}</h2>\n<ul>{reasons}</ul>\n")
        page.write("</body></html>\n")


def _ranked(found: Predictions) -> Iterator[tuple[Path, list[tuple[str, float]]]]:
    """Each picture with the names of its classes and their probabilities."""
    for file, top, probabilities in zip(found.files, found.top.tolist(), found.probabilities.tolist(), strict=True):
        yield file, [(found.class_names[label], value) for label, value in zip(top, probabilities, strict=True)]


def _thumbnail(file: Path) -> str:
    """An image that holds its own pixels; nothing where the file has gone since it was looked at."""
    try:
        image = picture_files([file]).open(0)
    except ValueError:
        return ""
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    stream = BytesIO()
    image.save(stream, "JPEG", quality=80)
    content = base64.b64encode(stream.getvalue()).decode()
    return f'<img loading="lazy" alt="" src="data:image/jpeg;base64,{content}">'


def _shown(text: object) -> str:
    return escape(printable(text))
