"""Picture files as users name them: files, folders and patterns."""

import glob
from collections.abc import Iterable
from pathlib import Path

from prograd_fast.data.folder import _pictures


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
        path = Path(name)
        pattern = not path.exists() and glob.has_magic(name)
        for found in map(Path, sorted(glob.glob(name, recursive=True))) if pattern else [path]:
            try:
                files.update(dict.fromkeys(_pictures(found) if found.is_dir() else [found]))
            except ValueError as error:
                missing[found] = str(error)
        if pattern and not glob.glob(name, recursive=True):
            missing[path] = f"{name}: no file or folder matches"
    return list(files), missing
