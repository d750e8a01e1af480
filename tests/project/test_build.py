"""Guards the build: the compiled module is there and of this machine; an sdist installs in pure Python and works."""

import shutil
import tarfile
from pathlib import Path

import pytest
import torch

from prograd_fast import backends
from tools import wheels


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


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path, str]:
    """The source distribution, the wheel in pure Python that is made of it, and the output."""
    folder = tmp_path_factory.mktemp("built")
    sdist = wheels.build_sdist(folder)
    return sdist, *wheels.build_wheel(sdist, folder, "none")


@pytest.mark.slow
def test_source_distribution_is_whole(built) -> None:
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = wheels.run("git", "ls-files", "csrc", "prograd_fast", "CMakeLists.txt", "setup.py").split()
    assert sorted(set(tracked) - names) == []
    assert not any(name.startswith("prograd_fast_demo/") for name in names)


@pytest.mark.slow
def test_wheel_in_pure_python_is_for_every_platform_and_says_why(built) -> None:
    """`make wheels` makes that with kernels, too, which takes minutes."""
    _, wheel, output = built
    assert wheel.name.endswith("-py3-none-any.whl")
    assert wheel.stat().st_size < 1_000_000  # that with kernels may have 3 MB
    told = [line for line in output.splitlines() if "without compiled kernels" in line]
    assert len(told) == 1
    assert "PROGRAD_FAST_BUILD=none" in told[0]


@pytest.mark.slow
def test_wheel_steps_in_an_environment_of_its_own(built, tmp_path) -> None:
    told = wheels.run(wheels.environment_of(tmp_path, built[1]), "-I", "-c", wheels.TRIAL)
    assert "the step is right, on the backend reference" in told
    assert "missing: the C++ kernels were not compiled: PROGRAD_FAST_BUILD=none. With a C++ compiler at hand, " in told
    assert "prograd_fast runs in plain PyTorch" not in told  # that is what was asked for


def test_a_wheel_is_labelled_with_its_pytorch() -> None:
    """One that stands for every release would be installed beside any."""
    assert wheels.label_of("2.14.1+cu130", None) == "+torch2.14"
    assert wheels.label_of("2.14.1+cu130", "13.0") == "+torch2.14.cu130"
