"""docs/adding-an-operator.md, carried out on a copy of the package: the operator is right, in PyTorch and in Triton."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import REPOSITORY

PAGE = (REPOSITORY / "docs" / "adding-an-operator.md").read_text(encoding="utf-8")
FILES = re.findall(r"^`(\S+)`:\n\n```(python|diff)\n(.*?)```", PAGE, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The package and its tests with what the page adds."""
    root = tmp_path_factory.mktemp("copy")
    for folder in ("prograd_fast", "tests"):
        shutil.copytree(REPOSITORY / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "assets"))
    for name, kind, text in FILES:
        file = root / name
        if kind == "python":
            assert not file.exists()
            file.write_text(text, encoding="utf-8")
            continue
        for hunk in text.split("@@\n"):
            lines = hunk.splitlines(keepends=True)
            before = "".join(line[1:] for line in lines if line[0] != "+")
            after = "".join(line[1:] for line in lines)
            source = file.read_text(encoding="utf-8")
            assert source.count(before) == 1, f"{name}: {before}"
            file.write_text(source.replace(before, after), encoding="utf-8")
    return root


def passes(copy: Path, *arguments: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        command,
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]


def test_the_operator(copy):
    passes(copy, "tests/ops/test_brier.py")


def test_the_triton_kernel(copy):
    pytest.importorskip("triton", reason="Triton has no wheel for this platform")
    passes(copy, "tests/gpu/triton/interpreted/brier.py", "-p", "tests.gpu.triton.support", TRITON_INTERPRET="1")
