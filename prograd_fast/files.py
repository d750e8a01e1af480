"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it if all goes well, so that `path` never holds half of a file."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # the suffix stays: it tells writers the format
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
