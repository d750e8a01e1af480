"""Training works for a user without a home folder or a name, as in a container."""

import logging
import os
import pwd
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from prograd_fast import cli
from prograd_fast.clip.feature_cache import default_cache
from tests.conftest import draw_shapes
from tests.processes import Forked


def test_a_user_without_a_home(monkeypatch, caplog):
    def nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with caplog.at_level(logging.WARNING):
        assert default_cache() is None
    (record,) = caplog.records
    assert "no home folder" in record.getMessage()


@pytest.mark.parametrize("home", [None, "/root", "/nonexistent", ""])
def test_a_container_with_any_user_trains(clip_dir, home):
    with tempfile.TemporaryDirectory() as folder:  # pytest's are for their owner alone
        train_as_nobody(Path(folder), clip_dir, home)


def train_as_nobody(folder: Path, clip_dir: Path, home: str | None) -> None:
    folder.chmod(0o777)
    data, model = draw_shapes(folder / "shapes", per_class=3), shutil.copytree(clip_dir, folder / "model")
    for path in (model, *model.iterdir()):
        path.chmod(0o755)
    arguments = ["train", "--data", data, "--shots", 1, "--epochs", 1, "--model", f"local-dir:{model}"]

    def train(run: str) -> int:
        return cli.run([*map(str, arguments), "--out", str(folder / run)])

    def as_nobody() -> None:
        # the interpreter itself may lie where only its owner reads: all is imported before the user changes
        assert train("first") == 0
        os.environ.pop("XDG_CACHE_HOME", None)
        os.environ.pop("HOME", None)
        if home is not None:
            os.environ["HOME"] = home
        if os.getuid() == 0:
            os.setgid(12345)
            os.setuid(12345)
        else:
            pwd.getpwuid = {}.__getitem__
        print("now", file=sys.stderr)
        sys.exit(train("second"))

    code, _, err = Forked(as_nobody).end()
    assert code == 0, err
    assert "Traceback" not in err
    assert err.partition("now\n")[2].count("image features are not kept") == 1, err
    assert (folder / "second" / "record.json").exists()
