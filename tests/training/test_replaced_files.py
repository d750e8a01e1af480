"""A file is replaced whole or not at all: no link is followed, no half file is left, and an error names the remedy."""

import errno
import json
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from prograd_fast.clip.feature_cache import FeatureCache
from prograd_fast.files.writing import replacing
from tests.clip.support import KEYS, VALUES
from tests.processes import Forked


def test_a_planted_link_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "victim").write_text("precious")
    # as if the name could be guessed
    monkeypatch.setattr("prograd_fast.files.writing.secrets.token_hex", lambda n: "0" * 2 * n)
    (tmp_path / f".pf-{'0' * 16}.file").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError, match=f"cannot write {tmp_path}/file"), replacing(tmp_path / "file") as new:
        new.write_text("mine")
    assert (tmp_path / "victim").read_text() == "precious"


def test_names_are_random_and_keep_the_suffix(tmp_path):
    seen = set()
    for _ in range(20):
        with replacing(tmp_path / "a.png") as temporary:
            assert re.fullmatch(r"\.pf-[0-9a-f]{16}\.a\.png", temporary.name)
            assert temporary.stat().st_size == 0
            seen.add(temporary.name)
    assert len(seen) == 20
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_link_in_place_of_the_file_is_replaced_itself(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "file").symlink_to(tmp_path / "victim")
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("mine")
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "file").is_symlink()


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("mine")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    names = {
        ".pf-0123456789abcdef.old.json": True,
        ".pf-0123456789abcdee.a": True,
        ".pf-0123456789abcded.young": False,  # a live writer's
        ".pf-0123456789abcdeg.old": False,
        ".pf-.old": False,
        ".12.old": False,
        "old": False,
        ".pf-0123456789abcdec.folder": False,
    }
    for name in names:
        path = tmp_path / name
        path.mkdir() if name.endswith("folder") else path.touch()
        age = 100 if name.endswith("young") else 4000
        os.utime(path, (time.time() - age, time.time() - age))
    with replacing(tmp_path / "new") as temporary:
        temporary.touch()
    left = set(os.listdir(tmp_path)) - {"new"}
    assert left == {name for name, removed in names.items() if not removed}


def test_a_killed_writer_leaves_the_file_and_later_nothing(tmp_path):
    file = tmp_path / "file"
    file.write_text("whole")

    def killed() -> None:
        with replacing(file) as temporary:
            temporary.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    assert Forked(killed).end()[0] == -signal.SIGKILL
    assert file.read_text() == "whole"
    (left,) = [path for path in tmp_path.iterdir() if path != file]
    os.utime(left, (0, 0))
    with replacing(file) as temporary:
        temporary.write_text("new")
    assert os.listdir(tmp_path) == ["file"]


def write_as_process_1(folder: Path, worker: int, n: int) -> None:
    os.getpid = lambda: 1  # what every container's first process is told
    cache = FeatureCache(folder, {"model": "one"})
    for i in range(n):
        cache.put(KEYS, VALUES)
        assert torch.equal(cache.get(KEYS)[KEYS[0]], VALUES[0])
        with replacing(folder / "shared.json") as temporary:
            temporary.write_text(json.dumps([worker, i] * 500))
        json.loads((folder / "shared.json").read_text())
    assert cache._stores  # nothing failed


def test_containers_share_a_cache(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=write_as_process_1, args=(tmp_path, worker, 60)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "free some space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "free some space"),
        (OSError(errno.EFBIG, "File too large"), "ulimit"),
        (PermissionError(errno.EACCES, "Permission denied"), "choose a folder that you may write to"),
        (OSError(errno.EROFS, "Read-only file system"), "choose a folder that you may write to"),
        (OSError(errno.EIO, "Input/output error"), ""),
        (OSError("without a number"), ""),
    ],
)
def test_errors_of_writing_name_file_and_remedy(tmp_path, error, remedy):
    with pytest.raises(type(error)) as caught, replacing(tmp_path / "file"):
        raise error
    assert str(caught.value).startswith(f"cannot write {tmp_path}/file: {error.strerror or 'without a number'}")
    assert remedy in str(caught.value)
    assert caught.value.errno == error.errno
    assert not os.listdir(tmp_path)
