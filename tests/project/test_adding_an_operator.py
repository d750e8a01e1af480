"""docs/adding-an-operator.md, carried out on a copy of the package: the operator is right, in PyTorch and in Triton."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import REPOSITORY
from tests.project.pages import carry_out

PAGE = (REPOSITORY / "docs" / "adding-an-operator.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The package and its tests with what the page adds."""
    root = tmp_path_factory.mktemp("copy")
    for folder in ("prograd_fast", "tests", "docs", "csrc"):
        shutil.copytree(REPOSITORY / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "assets"))
    carry_out(PAGE, root)
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
    dispatch = "tests/ops/test_dispatch.py::test_all_operators_are_checked"
    passes(copy, "tests/ops/test_brier.py", dispatch, "tests/project/test_architecture.py")


@pytest.mark.slow
def test_the_triton_kernel(copy):
    pytest.importorskip("triton", reason="Triton has no wheel for this platform")
    passes(copy, "tests/gpu/triton/interpreted/brier.py", "-p", "tests.gpu.triton.support", TRITON_INTERPRET="1")
    passes(copy, "tests/gpu/triton/test_source.py", "-k", "every_operator or brier")
