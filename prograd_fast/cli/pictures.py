"""The pictures of a command, with a word on the files that are left out."""

import sys
from typing import TYPE_CHECKING, Any

from prograd_fast.terminal.output import progress
from prograd_fast.terminal.printable import printable

if TYPE_CHECKING:
    from prograd_fast.data import PictureSet


def open_pictures(data: str, **options: Any) -> "PictureSet":
    """`prograd_fast.data.load` with a progress bar; one line on stderr tells which files of a folder were ignored."""
    from prograd_fast.data import load
    from prograd_fast.data.walk import describe_ignored

    with progress(passing=True) as track:
        pictures = load(data, track=track, **options)
    ignored = describe_ignored(pictures.ignored)
    if ignored:
        print(printable(f"{data}: {ignored}"), file=sys.stderr)
    return pictures
