"""simt.h does what a GPU does, and notices what a GPU punishes, in kernels that are known."""

import subprocess
from pathlib import Path

import pytest

from tests.gpu.simt.build import compile_cpp, compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: the CUDA kernels cannot run on the CPU")


def test_simt_header_on_known_kernels() -> None:
    folder = Path(__file__).parent
    program = compile_cpp([folder / "self_test.cpp"], [folder], "self_test")
    result = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "ok\n"), result.stdout
