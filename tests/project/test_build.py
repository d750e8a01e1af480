"""Guards the build: the compiled module is there and of this machine; an sdist installs in pure Python and works."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from prograd_fast import backends
from tests.paths import REPOSITORY


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_kernels_are_built_where_there_is_a_compiler() -> None:
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("no compiler: the pure-Python installation is the right one")
    assert backends.missing("cpu") is None


@pytest.mark.skipif(backends.missing("cpu") is not None, reason="pure-Python installation")
def test_facts_are_those_of_this_machine() -> None:
    from prograd_fast import _C

    facts = _C.build_facts()
    assert facts["torch"] == torch.__version__
    assert facts["instruction_set"] == facts["instruction_sets"][-1]
    # torch reads the same CPU: what it finds, the kernels use
    of_torch = {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "baseline")
    assert of_torch in facts["instruction_sets"]
    assert "-ffp-contract=off" in facts["flags"]


IN_PURE_PYTHON = """
import os, sys
os.chdir("/")
sys.path[0] = os.environ["SITE"]
# an editable installation would lend its compiled module to this one
sys.meta_path[:] = [f for f in sys.meta_path if getattr(f, "__name__", "") != "_EditableFinder"]
import torch, prograd_fast as pf
from prograd_fast import backends
print(pf.__file__, backends.active()["cpu"], backends.missing("cpu"))
z = torch.randn(3, 4, requires_grad=True)
task, general = pf.DualLoss()(z, torch.randn(3, 4), torch.tensor([0, 1, 2]))
weight = torch.nn.Parameter(torch.ones(4))
optimizer = pf.ProGradAdamW([weight])
optimizer.backward((z.detach() * weight).square().sum(), weight.sum())
optimizer.step()
print("stepped", bool((weight != 1).all()))
"""


@pytest.mark.slow
def test_sdist_to_wheel_to_installation_that_works(tmp_path: Path) -> None:
    """In pure Python, which takes seconds; `make package` compiles on the way, which takes a minute."""
    run(sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})")
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = run("git", "ls-files", "csrc", "prograd_fast", "CMakeLists.txt", "setup.py").split()
    assert sorted(set(tracked) - names) == []
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
    said = run(
        *pip, "wheel", "--verbose", "--no-build-isolation", "--no-deps", "--no-index", "-w", tmp_path, sdist,
        PROGRAD_FAST_BUILD="none",
    )  # fmt: skip
    lines = [line for line in said.splitlines() if "without compiled kernels" in line]
    assert len(lines) == 1
    assert "PROGRAD_FAST_BUILD=none" in lines[0]
    (wheel,) = tmp_path.glob("*.whl")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--target", tmp_path / "site", wheel)
    said = run(sys.executable, "-c", IN_PURE_PYTHON, SITE=str(tmp_path / "site"))
    assert str(tmp_path / "site") in said
    assert "reference the C++ kernels are not built for this PyTorch" in said
    assert "stepped True" in said
