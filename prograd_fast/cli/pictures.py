"""The pictures of a command, with a word on the files that are left out."""

import sys
from pathlib import Path
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
    if pictures.folder is None and Path(data).is_dir():
        print(printable(f"{data} is the embedded set; for the folder of this name give ./{data}"), file=sys.stderr)
    ignored = describe_ignored(pictures.ignored)
    if ignored:
        print(printable(f"{data}: {ignored}"), file=sys.stderr)
    return pictures


def tell_contradictions(pictures: "PictureSet") -> None:
    """One line on stderr where pictures of a folder are in two classes: in one of them, any prediction is wrong.

    Pictures whose content was not looked at yet do not count. Those of the benchmark stay as they are.
    """
    if pictures.published:
        return
    first: dict[str, int] = {}
    pairs: list[tuple[Path, Path]] = []
    for row, source in enumerate(pictures.source):
        if not isinstance(source, Path) or pictures.folder is None or source not in pictures.known_digests:
            continue
        other = first.setdefault(pictures.known_digests[source], row)
        if pictures.labels[other] != pictures.labels[row]:
            pairs.append((Path(pictures.source[other]), source))  # type: ignore[arg-type]  # a folder has files
    if pairs:
        one, another = pairs[0]
        n = f"{len(pairs)} pictures are" if len(pairs) > 1 else "one picture is"
        line = f"{pictures.name}: {n} in more than one class, such as {one} and {another}; remove the wrong ones"
        print(printable(line), file=sys.stderr)
