"""The Triton kernels, executed by Triton's interpreter on the CPU.

The interpreter is chosen by an environment variable that must be set before Triton is imported, so the cases of
`triton_interpreter/` run in processes of their own. One program runs after another there, in order: a race
between programs would not show; none of these kernels has programs that wait for each other.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import REPOSITORY

NAMES = ("losses.py", "related_losses.py", "steps.py", "optimizers.py", "transformer.py", "golden.py")
CASES = [Path(__file__).parent / "interpreted" / name for name in NAMES]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_cases_in_the_interpreter(case):
    pytest.importorskip("triton", reason="Triton has no wheel for this platform")
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", str(case)]
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
