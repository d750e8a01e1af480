"""Write files whole or not at all."""

import csv
import errno
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_KEEP_TEMPORARIES = 3600.0  # seconds: writing takes far less, so that an older one belongs to a killed process
_TEMPORARY = re.compile(r"\.pf-[0-9a-f]{16}\..")
_REMEDIES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there",
    errno.EFBIG: "raise the limit of file sizes, see ulimit -f",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, renamed to it if all goes well, so that `path` never holds half of a file.

    The temporary's name is random and the file is made here. Writers in other containers get other names, and a link
    that somebody put there is not followed. Temporaries of killed processes are removed after an hour.

    Raises:
        OSError: of the kind that was raised; the message names `path`, the reason and the remedy.
    """
    # the suffix stays, because writers choose the format by it
    temporary = path.with_name(f".pf-{secrets.token_hex(8)}.{path.name}")
    try:
        temporary.open("xb").close()  # fails where anything is, also a link
        _remove_stale(temporary)
        yield temporary
        with temporary.open("rb+") as file:  # the name must not reach the disk before the content does
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        remedy = f"; {_REMEDIES[error.errno]}" if error.errno in _REMEDIES else ""
        named = type(error)(f"cannot write {path}: {error.strerror or error}{remedy}")
        named.errno = error.errno
        raise named from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows, the header first, as UTF-8; bytes of a file's name that are no UTF-8 are written as escapes.

    Raises:
        OSError: the file cannot be written; see `replacing`.
    """
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows(rows)


def _flush_folder(folder: Path) -> None:
    """Put the new name on the disk, where the system can do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_stale(temporary: Path) -> None:
    """Remove the temporaries that are an hour older than a new one, by the clock of their file system."""
    now = temporary.stat().st_mtime
    with suppress(OSError), os.scandir(temporary.parent) as entries:
        for entry in entries:
            if _TEMPORARY.match(entry.name) and entry.stat(follow_symlinks=False).st_mtime < now - _KEEP_TEMPORARIES:
                with suppress(OSError):
                    os.unlink(entry.path)
