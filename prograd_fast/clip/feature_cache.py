"""Image features on disk: a frozen tower has to see each picture once, not once for each run.

A cache is a folder of shards, safetensors files that are only ever added, whole (temporary name, then rename). Runs and
processes can share it without locks: the worst that two writers can do is to store the same features twice.

Features are mapped from the files, not read into memory: the system reads a page when a row in it is used, and may drop
it again. A shard that is replaced or removed meanwhile stays as it was for those who have mapped it, since no writer
writes into a file that has its name already. Each row has a checksum of its own, so that only rows that are asked for
are read and checked, not the whole shard.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prograd_fast.clip.digest import shapeless
from prograd_fast.clip.rows import KeyedRows
from prograd_fast.files.reading import parse_json, read_ahead
from prograd_fast.files.tensors import digest, open_tensors, write_tensors

_LOG = logging.getLogger("prograd_fast")
_HEADER = "prograd_fast_features"
_SUFFIX = ".safetensors"
_LAYOUT = "row checksums"  # of a shard; another one gets another folder
_CHECKED_AT_ONCE = 512  # rows, whose copy stays in a core's cache
_AHEAD = 2  # shards that the system reads while one is compared
_OWN_FOLDER = re.compile("[0-9a-f]{16}")
_OWN_FILE = re.compile(r"(\.pf-[0-9a-f]{16}\.)?[0-9a-f]{16}\.safetensors")


def default_cache() -> Path | None:
    """`prograd-fast/features` in the user's folder for caches: $XDG_CACHE_HOME, or ~/.cache.

    None, with a warning, for a user without a folder: HOME is not set, and the system has no entry for the user, as in
    many containers.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prograd-fast" / "features"
    except RuntimeError:
        _LOG.warning("image features are not kept: this user has no home folder; set HOME, or give --cache DIR")
        return None


class FeatureCache:
    """Features by the digest of what they were made from.

    Args:
        folder: of the cache; made when something is stored.
        identity: everything that decides what the features of a picture are, but the picture: see `tower_identity`.
            Features of another identity are never returned.
        width: D; None: that of the first features found.
        label: What a person calls the model, for `stored`.

    A shard that cannot be read back whole (checksum, shape) is deleted, and its features are computed again; a warning
    of the logger "prograd_fast" names it. If a shard cannot be stored (full disk, folder without permission), one
    warning says so and nothing more is stored: a cache only saves time.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str], width: int | None = None, label: str = "") -> None:
        self._identity = json.dumps({"layout": _LAYOUT, **identity}, sort_keys=True)
        self._label = label
        self.folder = folder / hashlib.sha256(self._identity.encode()).hexdigest()[:16]
        self._width = width
        self._stores = True

    def get(self, keys: list[bytes]) -> KeyedRows:
        """The known ones of these 32-byte keys, each with its (D,) float32 feature, which is mapped from a file.

        The checksums of these features are compared, those of others are not. Meanwhile the system reads ahead.
        """
        found = KeyedRows(keys)
        for path, following, stored, sums, values in self._shards():
            slots = found.slots(stored)
            rows = np.flatnonzero(slots >= 0)
            if not len(rows):
                continue
            if 2 * len(rows) >= len(slots):  # then the next ones are most likely wanted, and the disk need not wait
                for file in following:
                    read_ahead(file)
            self._width = self._width or values.shape[1]
            if values.shape[1] != self._width:
                self._discard(path, f"features are {values.shape[1]} wide, expected {self._width}")
            elif not torch.equal(row_sums(values, rows), sums[rows]):
                self._discard(path, "a checksum differs")
            else:
                found.add(slots, values)
        return found

    def put(self, keys: list[bytes], values: Tensor) -> None:
        """Store features.

        Args:
            keys: N 32-byte digests.
            values: (N, D) float32.
        """
        if not self._stores or not keys:
            return
        tensors = {
            "keys": torch.from_numpy(np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32).copy()),
            "values": values.detach().cpu().contiguous(),
        }
        tensors["sums"] = row_sums(tensors["values"], np.arange(len(keys)))
        header = {
            "identity": self._identity,
            "label": self._label,
            **{name: digest(tensors[name]) for name in ("keys", "sums")},
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{header['keys'][:16]}{_SUFFIX}"
            write_tensors(path, {_HEADER: json.dumps(header)}, tensors)
        except OSError as error:
            self._stores = False
            _LOG.warning("image features are not kept: %s", error)

    def _shards(self) -> Iterator[tuple[Path, list[Path], list[bytes], Tensor, Tensor]]:
        """Path, the next ones' paths, N keys, (N,) checksums and (N, D) mapped features of every shard."""
        try:
            files = sorted(self.folder.glob(f"[!.]*{_SUFFIX}")) if self.folder.is_dir() else []
        except OSError as error:  # a folder of somebody else's
            _LOG.warning("image features in %s cannot be read: %s", self.folder, error)
            files = []
        for i, path in enumerate(files, 1):
            try:
                with open_tensors(path, _HEADER) as (texts, file):
                    header = parse_json(texts[_HEADER])
                    if header["identity"] != self._identity:
                        raise ValueError("made by another model or transform")
                    keys = _whole(file.get_tensor("keys"), header["keys"])
                    sums, values = _whole(file.get_tensor("sums"), header["sums"]), file.get_tensor("values")
                    if values.ndim != 2 or values.dtype != torch.float32:
                        raise ValueError(f"features {tuple(values.shape)}, {values.dtype}")
                    expected = ((len(values), 32), torch.uint8), ((len(values),), torch.int64)
                    if tuple((tensor.shape, tensor.dtype) for tensor in (keys, sums)) != expected:
                        raise ValueError(f"keys {tuple(keys.shape)} and checksums {tuple(sums.shape)} of others")
            except FileNotFoundError:  # another process found it damaged just now
                continue
            except OSError as error:
                _LOG.warning("image features in %s cannot be read (%s); they are computed again", path, error)
                continue
            except ValueError as error:
                self._discard(path, str(error))
                continue
            yield path, files[i : i + _AHEAD], keys.numpy().view("V32").ravel().tolist(), sums, values

    def _discard(self, path: Path, reason: str) -> None:
        _LOG.warning("image features in %s are damaged (%s); they are computed again", path, reason)
        try:
            path.unlink(missing_ok=True)
        except OSError:  # not ours to delete: it will be named at the next run too
            return


def tower_identity(tower: nn.Module) -> dict[str, str]:
    """Identify an image tower by the digest of its weights and buffers, and of its modules as they print.

    The modules count too: ViT-B-32 and ViT-B-32-quickgelu can have the same weights, as have towers of 8 and 16 heads.
    """
    state = sorted(tower.state_dict().items())
    names = "\n".join([*(name for name, _ in state), repr(tower), *shapeless(tower)])
    return {"weights": digest(*(tensor for _, tensor in state)), "modules": hashlib.sha256(names.encode()).hexdigest()}


@dataclass(frozen=True)
class Stored:
    """The features of one model in a cache: its label, the pictures, bytes, and seconds of the last change."""

    label: str
    pictures: int
    size: int
    changed: float


def stored(folder: Path) -> list[Stored]:
    """The content of a cache, model by model; damaged shards count with their size alone.

    Raises:
        OSError: the folder is there and cannot be read.
    """
    found = []
    for own, files in _own_files(folder):
        label, pictures, size, changed = "", 0, 0, 0.0
        for path in files:
            try:
                size, changed = size + path.stat().st_size, max(changed, path.stat().st_mtime)
                with open_tensors(path, _HEADER) as (texts, file):
                    label = str(parse_json(texts[_HEADER]).get("label") or label)
                    pictures += file.get_slice("keys").get_shape()[0]
            except (OSError, ValueError):  # another process removed it, or it is damaged, which its next reader tells
                continue
        if files:
            found.append(Stored(label or own.name, pictures, size, changed))
    return sorted(found, key=lambda one: (one.label, one.changed))


def clear(folder: Path) -> None:
    """Remove the features of a cache, and nothing else that lies in its folder.

    Raises:
        OSError: a file cannot be removed.
    """
    for own, files in _own_files(folder):
        for path in files:
            path.unlink(missing_ok=True)
        with suppress(OSError):  # something else is in it, or another process stores a shard
            own.rmdir()


def _own_files(folder: Path) -> list[tuple[Path, list[Path]]]:
    """Each model's folder in a cache, and the files in it that a cache made."""
    if not folder.exists():
        return []
    own = sorted(path for path in folder.iterdir() if _OWN_FOLDER.fullmatch(path.name) and path.is_dir())
    return [(path, sorted(file for file in path.iterdir() if _OWN_FILE.fullmatch(file.name))) for path in own]


def row_sums(values: Tensor, rows: NDArray[np.int64]) -> Tensor:
    """(len(rows),) int64: the sum of each of these rows of (N, D) float32 features, read as integers, modulo 2⁶⁴.

    A single bit that flips, or a part that is lost, changes it; and it is as fast as memory.

    Args:
        values: The features.
        rows: In rising order.
    """
    words = values.view(torch.int64 if values.shape[1] % 2 == 0 else torch.int32)
    sums = torch.empty(len(rows), dtype=torch.int64)
    for start in range(0, len(rows), _CHECKED_AT_ONCE):
        some = rows[start : start + _CHECKED_AT_ONCE]
        first, end = int(some[0]), int(some[-1]) + 1
        followed = end - first == len(some)  # then they are summed where they are
        part = words[first:end] if followed else words[torch.from_numpy(some)]
        part = part if part.dtype == torch.int64 else part.long() & 0xFFFFFFFF  # 32 bits count without a sign
        torch.sum(part, 1, out=sums[start : start + len(some)])
    return sums


def _whole(tensor: Tensor, expected: str) -> Tensor:
    if digest(tensor) != expected:
        raise ValueError("a checksum differs")
    return tensor
