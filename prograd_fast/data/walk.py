"""The pictures in a folder, and how many other files it holds."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from prograd_fast.data.decode import SUFFIXES
from prograd_fast.installation import to_install

# what file managers, archives and storage systems leave in folders; compared without regard to case
_SYSTEM_FOLDERS = frozenset(
    {
        *("@eadir", "#recycle", "#snapshot", "__macosx", "$recycle.bin", "recycler", "recycled"),
        *("system volume information", "lost+found", "__pycache__"),
    }
)
_SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
_HIDDEN, _LOOPS, _OUTSIDE = "hidden pictures", "folders read before", "pictures outside the class folders"
_HEIC, _AVIF = to_install("heic"), "pip install -U pillow"
_REMEDIES = {".heic": _HEIC, ".heif": _HEIC, ".hif": _HEIC, ".avif": _AVIF}


def subfolders(folder: Path, ignored: Counter[str]) -> list[Path]:
    """The folders in a folder, links to folders included, sorted; hidden and system folders are left out.

    Args:
        folder: to look into, not deeper.
        ignored: counts the files of system folders, and the pictures beside the folders.

    Raises:
        ValueError: a link leads nowhere, or the folder cannot be read.
    """
    found = []
    try:
        for child in sorted(folder.iterdir()):
            if not child.is_dir():
                _check_link(child)
                ignored[_OUTSIDE] += _is_picture(child.name) and not child.name.startswith(".")
            elif child.name.lower() in _SYSTEM_FOLDERS:
                ignored[child.name] += sum(len(files) for _, _, files in os.walk(child))
            elif not child.name.startswith("."):
                found.append(child)
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from error
    return found


def pictures_in(folder: Path, ignored: Counter[str]) -> list[Path]:
    """The files in a folder and below that are pictures by their suffix (`SUFFIXES`, any case), sorted.

    Links to folders are followed, each folder once. Hidden and system files and folders are left out. A pipe or a link
    that leads nowhere stays, and is refused when it is read.

    Args:
        folder: to look into.
        ignored: counts what is left out, by suffix or folder.

    Raises:
        ValueError: there is no picture, a folder cannot be read, or a link without a picture's suffix leads nowhere.
    """
    found: list[Path] = []
    here_ignored: Counter[str] = Counter()
    seen = set()
    for here, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            here_ignored[_LOOPS] += 1
            folders.clear()
            continue
        seen.add(real)
        for name in [name for name in folders if name.lower() in _SYSTEM_FOLDERS or name.startswith(".")]:
            folders.remove(name)
            inner = [file for _, _, files in os.walk(os.path.join(here, name)) for file in files]
            if not name.startswith("."):
                here_ignored[name] += len(inner)
            else:
                here_ignored[_HIDDEN] += sum(map(_is_picture, inner))
        folders.sort()
        for name in files:
            if name.lower() in _SYSTEM_FILES or name.startswith("._"):
                continue
            if name.startswith("."):
                here_ignored[_HIDDEN] += _is_picture(name)
            elif _is_picture(name):
                found.append(Path(here, name))
            else:
                _check_link(Path(here, name))
                here_ignored[Path(name).suffix.lower() or "files without a suffix"] += 1
    ignored += here_ignored  # in place; counts of zero go
    if not found:
        left_out = describe_ignored(here_ignored)
        raise ValueError(
            f"{folder}: no picture; expected at least one file such as .jpg, .png, .webp or .heic"
            + (f"; {left_out}" if left_out else "")
        )
    return sorted(found)


def describe_ignored(ignored: Mapping[str, int]) -> str:
    """One line: how many files were left out, of which kinds, and how to have them read; "" where there is none."""
    kinds = sorted(((kind, n) for kind, n in ignored.items() if n), key=lambda item: (-item[1], item[0]))
    if not kinds:
        return ""
    told = [f"{n} {kind}" + (f" ({_REMEDIES[kind]})" if kind in _REMEDIES else "") for kind, n in kinds]
    total = sum(n for _, n in kinds)
    return f"ignored {total} file{'s' * (total > 1)}: {', '.join(told)}"


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _check_link(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path}: the link leads nowhere; mend or remove it")


def _refuse(error: OSError) -> None:
    raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from error
