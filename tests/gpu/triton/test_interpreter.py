"""Guards the Triton kernels: Triton's interpreter executes them on the CPU.

An environment variable chooses the interpreter before Triton is imported, so the files of `interpreted/` run in three
processes of their own. There one program runs after another, in order: a race between programs would not show. None
of these kernels has programs that wait for each other.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import REPOSITORY

CASES = sorted(file for file in (Path(__file__).parent / "interpreted").glob("*.py") if file.stem != "__init__")


@pytest.mark.parametrize(
    "cases", [CASES[i::3] for i in range(3)], ids=lambda cases: "-".join(case.stem for case in cases)
)
def test_cases_in_the_interpreter(cases, pytestconfig):
    pytest.importorskip("triton", reason="Triton has no wheel for this platform")
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", *map(str, cases)]
    command += ["-m", pytestconfig.option.markexpr]  # without the slow ones, where this process leaves them out
    command += ["-p", "tests.gpu.triton.support"]  # registers the kernels
    # the interpreter computes masked-out lanes with numpy, which warns of -inf - -inf there
    command += ["-W", "ignore::RuntimeWarning"]
    child = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert child.returncode == 0, child.stdout[-8000:] + child.stderr[-4000:]
    assert " passed" in child.stdout
    assert "skipped" not in child.stdout
