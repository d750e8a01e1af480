"""The frame of an HTML page that needs nothing beside it: no network, no other file."""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from prograd_fast.report.html import Html, tag


def document(title: str, note: str, sections: Sequence[Html]) -> str:
    """A whole page. Its policy forbids every request, and every script but its own, whatever the content holds.

    Args:
        title: of the page.
        note: a sentence under the title.
        sections: what the page shows.
    """
    style, script = (files("prograd_fast.report").joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{title} – prograd-fast"),
        tag("style", Html(style)),
    )
    header = tag("header", tag("h1", title), tag("p", note, class_="note"))
    body = tag("body", header, tag("main", *sections), tag("script", Html(script)))
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"
