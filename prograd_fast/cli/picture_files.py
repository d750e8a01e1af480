"""Picture files as users name them: files, folders and patterns."""

import glob
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from prograd_fast.data.walk import pictures_in


class Found(NamedTuple):
    """Picture files, and names that stand for none.

    Attributes:
        files: each once, in the order of their names on the command line.
        missing: the names that stand for no file, with the reason.
        ignored: how many files of folders are no pictures, by kind.
    """

    files: list[Path]
    missing: dict[Path, str]
    ignored: Counter[str]


def find_pictures(given: Iterable[str]) -> Found:
    """Turn names of files and folders, and patterns such as "photos/**/*.jpg", into files.

    A folder stands for all pictures in it. A pattern is for shells that do not know patterns, or quote them.
    """
    ignored: Counter[str] = Counter()
    files: dict[Path, None] = {}
    missing: dict[Path, str] = {}
    for name in given:
        matches = [name]
        if glob.has_magic(name) and not os.path.lexists(name):
            matches = sorted(glob.glob(name, recursive=True))
        if not matches:
            missing[Path(name)] = f"{name}: no file or folder matches"
        for match in map(Path, matches):
            try:
                files.update(dict.fromkeys(pictures_in(match, ignored) if os.path.isdir(match) else [match]))
            except ValueError as error:
                missing[match] = str(error)
    return Found(list(files), missing, ignored)
