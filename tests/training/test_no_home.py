"""Training works for a user without a home folder or a name, as in a container."""

import json
import logging
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from prograd_fast.clip.feature_cache import default_cache
from tests.conftest import draw_shapes
from tests.paths import REPOSITORY


def test_a_user_without_a_home(monkeypatch, caplog):
    import pwd

    def nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with caplog.at_level(logging.WARNING):
        assert default_cache() is None
    (record,) = caplog.records
    assert "no home folder" in record.getMessage()


# The interpreter itself may lie where only its owner reads: everything is imported before the user changes.
AS_NOBODY = """
import json, os, pwd, sys
from prograd_fast import cli
arguments, home, out = json.loads(sys.argv[1])

def train(folder):
    sys.argv[1:] = [*arguments, "--out", folder]
    try:
        cli.main()
    except SystemExit as ended:
        return ended.code or 0

assert train(out + "/first") == 0
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
sys.exit(train(out + "/second"))
"""


@pytest.mark.parametrize("home", [None, "/root", "/nonexistent", ""])
def test_a_container_with_any_user_trains(clip_dir, home):
    with tempfile.TemporaryDirectory() as folder:  # pytest's are for their owner alone
        train_as_nobody(Path(folder), clip_dir, home)


def train_as_nobody(folder: Path, clip_dir: Path, home: str | None) -> None:
    folder.chmod(0o777)
    data, model = draw_shapes(folder / "shapes", per_class=3), shutil.copytree(clip_dir, folder / "model")
    for path in (model, *model.iterdir()):
        path.chmod(0o755)
    arguments = f"train --data {data} --shots 1 --epochs 1 --model local-dir:{model}".split()
    command = [sys.executable, "-c", AS_NOBODY, json.dumps([arguments, home, str(folder)])]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.partition("now\n")[2].count("image features are not kept") == 1, done.stderr
    assert (folder / "second" / "record.json").exists()
