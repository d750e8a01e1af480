"""The folders and files that a command writes to, checked before any work."""

import os
import tempfile
from pathlib import Path

ROOM = 1 << 20  # bytes that a run takes, at the least that is worth beginning


def check_writable(folder: Path, option: str = "--out") -> None:
    """ValueError unless the folder can be written to, or made, and its disk has room for a run."""
    remedy = f"choose another {option}"
    if "\0" in str(folder):
        raise ValueError(f"cannot write to {folder}: no name on a disk holds a NUL character; {remedy}")
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise ValueError(f"cannot write to {folder}: {existing} is not a folder that you may write to; {remedy}")
    try:
        with tempfile.TemporaryFile(dir=existing) as file:  # asks the system, which knows more than permissions
            file.write(bytes(ROOM))
    except OSError as error:
        raise ValueError(
            f"cannot write to {folder}: {existing} has no room or is not a folder that you may write to "
            f"({error.strerror}); free {ROOM >> 20} MiB there, or {remedy}"
        ) from error


def check_files(files: dict[str, Path | None]) -> dict[str, Path]:
    """The files to write by option, those that are given; ValueError unless they are different and can be written."""
    given = {option: file for option, file in files.items() if file is not None}
    for option, file in given.items():
        if file.is_dir():
            raise ValueError(f"cannot write {file}: a folder of this name is there; choose another {option}")
        check_writable(file.parent, option)
    if len({file.resolve() for file in given.values()}) < len(given):
        raise ValueError(f"{' and '.join(given)}: expected different files, got {', '.join(map(str, given.values()))}")
    return given


def cache_folder(folder: Path | None, no_cache: bool) -> Path | None:
    """The folder for image features, or None for no folder. A folder that the user names must be writable."""
    from prograd_fast.clip.feature_cache import default_cache

    if folder is None:
        return None if no_cache else default_cache()
    if no_cache:
        raise ValueError("--cache and --no-cache exclude each other")
    check_writable(folder, "--cache")
    return folder
