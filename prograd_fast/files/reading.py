"""Read files that anybody may have written or damaged. Every fault in their content is a ValueError."""

import json
import os
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

MAX_TEXT = 64 << 20  # bytes of a JSON or text file; our largest, the results of a grid, have a few MB
MAX_DEPTH = 64  # of lists and objects in JSON; ours have up to 25, and functions that walk through them recurse
_ASKED_AT_ONCE = 1 << 20  # bytes; of a longer part Linux may read the start alone


def read_bytes(path: Path, limit: int = MAX_TEXT) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: it is not there, or cannot be read.
        ValueError: it is a folder, pipe or device, or larger than `limit` bytes.
    """
    check_regular(path, limit)
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:  # it grew, or is a file of /proc, whose size reads 0
        raise ValueError(f"{path} is too large: expected at most {limit} bytes")
    return content


def check_regular(path: Path, limit: int = MAX_TEXT) -> None:
    """Errors as `read_bytes`, before anything is opened: a pipe would block."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is not a regular file")
    if status.st_size > limit:
        raise ValueError(f"{path} is too large: expected at most {limit} bytes, got {status.st_size}")


def read_ahead(path: Path) -> None:
    """Ask Linux to read a regular file of at most `MAX_TEXT` bytes into its memory, and do not wait for it."""
    if sys.platform == "linux":
        with suppress(OSError, ValueError):
            check_regular(path)
            with path.open("rb") as file:
                for start in range(0, os.fstat(file.fileno()).st_size, _ASKED_AT_ONCE):
                    os.posix_fadvise(file.fileno(), start, _ASKED_AT_ONCE, os.POSIX_FADV_WILLNEED)


def read_text(path: Path, limit: int = MAX_TEXT) -> str:
    """The text of a regular UTF-8 file, without the mark that Windows editors put in front; errors as `read_bytes`."""
    return read_bytes(path, limit).decode("utf-8-sig")


def read_json(path: Path, limit: int = MAX_TEXT) -> Any:
    """The JSON of a regular file; errors as `read_bytes` and `parse_json`."""
    return parse_json(read_text(path, limit))


def parse_json(text: str, *, finite: bool = True) -> Any:
    """JSON from anybody.

    Args:
        text: The JSON.
        finite: Whether NaN and infinities are refused, which JSON does not have.

    Raises:
        ValueError: It is no JSON, deeper than `MAX_DEPTH`, has a name twice in an object, or numbers beyond 64 bits.
    """

    def constant(name: str) -> float:
        if finite:
            raise ValueError(f"{name} is not JSON")
        return float(name)

    try:
        value = json.loads(
            text, parse_constant=constant, parse_float=_float, parse_int=_int, object_pairs_hook=_without_repetition
        )
    except RecursionError:
        raise ValueError("lists and objects are nested too deeply") from None
    _check_depth(value, MAX_DEPTH)
    return value


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:30]} is beyond 64 bits")
    return value


def _int(text: str) -> int:
    if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 63:
        raise ValueError(f"the number {text[:30]} is beyond 64 bits")
    return int(text)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {max(names, key=names.count)!r} is there twice")
    return value


def _check_depth(value: Any, left: int) -> None:
    if left == 0:
        raise ValueError(f"lists and objects are nested more than {MAX_DEPTH} times")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(item, dict | list):
            _check_depth(item, left - 1)


def check_kinds(value: Any, kinds: Mapping[str, Any]) -> None:
    """ValueError unless these entries of an object have these types; "a.b" is entry b of entry a."""
    for key, kind in kinds.items():
        found = value
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
            raise ValueError(f"{key} is {short(found)}")


def short(value: Any) -> str:
    """A value in a message, cut off where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
