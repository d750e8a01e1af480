"""Picture files as users name them: files, folders and patterns."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from prograd_fast.data.walk import pictures_in


def find_pictures(given: Iterable[str]) -> tuple[list[Path], dict[Path, str]]:
    """Turn names of files and folders, and patterns such as "photos/**/*.jpg", into files.

    A folder stands for all pictures in it. A pattern is for shells that do not know patterns, or quote them. A file
    that is named twice is there once.

    Returns:
        The files; and the names that stand for no file, with the reason.
    """
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
    return list(files), missing
