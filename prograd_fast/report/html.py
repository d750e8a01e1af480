"""HTML from Python: every text is escaped, since names of classes and files come from strangers."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from prograd_fast.terminal.printable import printable

_VOID = frozenset({"img", "link", "meta"})


class Html(str):
    """A text that is HTML already. Any other text is escaped when it enters HTML."""


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element with its children and attributes, all escaped.

    Args:
        name: of the element.
        children: `Html`, or anything whose text is meant.
        **attributes: `class_` is class, `data_value` is data-value. None and False: left out; True: without a value.

    Example:
        >>> tag("p", "a < b", class_="note")
        '<p class="note">a &lt; b</p>'
    """
    given = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{text(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{join(*children)}</{name}>")


def join(*children: object) -> Html:
    """Children one after the other, without an element around them."""
    return Html("".join(child if isinstance(child, Html) else text(child) for child in children))


def text(value: object) -> Html:
    """A text as HTML, without any power over the page or over the order of its letters."""
    return Html(escape(printable(value)))


@dataclass(frozen=True)
class Number:
    """A number in a table: how it is shown, and its place in the order."""

    shown: str
    value: float


def percent(share: float) -> Number:
    """A share in [0, 1] as a percentage; a dash for NaN."""
    return Number("–", -1.0) if share != share else Number(f"{100 * share:.1f}", share)


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], caption: str) -> Html:
    """A table that sorts by a column where its header is clicked, or pressed with Enter or Space.

    It scrolls in itself where it is wider or higher than its place.

    Args:
        headers: of the columns; one that is empty does not sort.
        rows: of `Number`, `Html` or texts.
        caption: tells those who cannot see it what the table is.
    """
    head = [tag("th", tag("button", header, type="button") if header else "", scope="col") for header in headers]
    body = [tag("tr", *map(_cell, row)) for row in rows]
    content = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *body), aria_label=caption)
    return scrolling(content, caption)


def scrolling(content: Html, caption: str) -> Html:
    """Something wide or high under its caption, in a frame that scrolls, also by keyboard."""
    frame = tag("div", content, class_="scroll", tabindex=0, role="region", aria_label=caption)
    return tag("figure", tag("figcaption", caption), frame)


def _cell(value: object) -> Html:
    if isinstance(value, Number):
        return tag("td", value.shown, class_="number", data_value=f"{value.value:.9g}")
    return tag("td", value)


def folded(summary: object, *children: object, open_: bool = False) -> Html:
    """A part of the page that opens on a click."""
    return tag("details", tag("summary", summary), *children, open=open_)
