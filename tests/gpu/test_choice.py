"""Guards the choice of a GPU backend, on GPUs that are made up: when it is made, and what rules a backend out."""

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import setuptools
import torch

from prograd_fast.backends import cuda, extension, gpu, triton
from tests.paths import REPOSITORY

needs_cuda_build = pytest.mark.skipif(torch.version.cuda is None, reason="this PyTorch was built without CUDA")


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        ("80-real 90-real 100", (7, 5), False),  # T4
        ("80-real 90-real 100", (8, 0), True),
        ("80-real 90-real 100", (8, 9), True),  # code runs on later minors
        ("80-real 90-real 100", (9, 0), True),
        ("80-real 90-real 100", (12, 0), True),  # by PTX
        ("80-real 90-real", (10, 0), False),
        ("86-real", (8, 0), False),
        ("90", (8, 9), False),
        ("90a-real", (9, 0), True),
        ("75", (8, 6), True),
    ],
)
def test_what_machine_code_runs_on(architectures: str, capability: tuple[int, int], runs: bool) -> None:
    assert gpu.compiled_for(architectures)(capability) is runs


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make GPUs up by their compute capabilities."""

    def make(*capabilities: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"made up {index}")

    return make


def test_an_old_gpu_rules_the_kernels_out(gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"cuda_architectures": "80-real 90-real 100"}
    monkeypatch.setattr(extension, "EXTENSION", SimpleNamespace(register_cuda=None, build_facts=lambda: facts))
    monkeypatch.setattr(triton, "find_spec", lambda name: object())
    monkeypatch.setattr(triton, "version", lambda name: "3.4.0")
    gpus((9, 0), (7, 5))
    for backend in (cuda, triton):
        reason = backend.missing()
        assert reason is not None
        assert "GPU 1, made up 1, has compute capability 7.5" in reason
        assert "CUDA_VISIBLE_DEVICES" in reason
    gpus((9, 0), (8, 6))
    assert (cuda.missing(), triton.missing()) == (None, None)
    gpus()
    assert "sees no GPU" in str(cuda.missing())
    assert "sees no GPU" in str(triton.missing())


@pytest.mark.parametrize(("found", "runs"), [("3.1.0", False), ("3.3.1", False), ("3.4.0", True), ("4.0", True)])
def test_an_old_triton(found: str, runs: bool, gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    gpus((9, 0))
    monkeypatch.setattr(triton, "find_spec", lambda name: object())
    monkeypatch.setattr(triton, "version", lambda name: found)
    assert (triton.missing() is None) is runs
    assert runs or f"Triton {found} does not compile" in str(triton.missing())


IMPORT = """
import torch
def touched(*args):
    raise AssertionError("CUDA was touched")
for name in ("_cuda_init", "_cuda_getDeviceCount"):
    setattr(torch._C, name, touched)
torch.cuda.is_available = torch.cuda.device_count = touched
import prograd_fast as pf
from prograd_fast import backends
p = torch.nn.Parameter(torch.ones(3))
pf.ProGradSGD([p], lr=0.1).backward_and_update(p.sum(), p.sum())
assert "cuda" not in backends._in_use
torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
torch.cuda.get_device_capability, torch.cuda.get_device_name = lambda index: CAPABILITY, lambda index: "made up"
def init():
    while torch.cuda._queued_calls:
        call, _ = torch.cuda._queued_calls.pop(0)
        if call.__module__.startswith("prograd_fast"):
            call()
torch.cuda.init = init
if EARLY:
    backends.use("reference")
print(backends.active()["cuda"])
"""


@needs_cuda_build
@pytest.mark.parametrize(
    ("capability", "early", "expected"),
    [((9, 0), False, ("cuda", "triton")), ((7, 0), False, ("reference",)), ((9, 0), True, ("cuda", "triton"))],
    ids=["new", "old", "the user chose before"],
)
def test_the_choice_waits_until_cuda_is_initialised(
    capability: tuple[int, int], early: bool, expected: tuple[str, ...]
) -> None:
    """An import that asked for GPUs would break processes that fork afterwards."""
    program = IMPORT.replace("CAPABILITY", str(capability)).replace("EARLY", str(early))
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.strip() in (("reference",) if early else expected), done.stderr


@pytest.mark.parametrize("fails", [["-DPF_CUDA=ON"], ["-DPF_CUDA=ON", "cpu"], []], ids=["cuda", "both", "nothing"])
@pytest.mark.parametrize("build", ["auto", "require"])
def test_a_cuda_build_that_fails_keeps_the_kernels_for_cpus(
    build: str, fails: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("PROGRAD_FAST_BUILD", build)
    monkeypatch.setattr(setuptools, "setup", lambda **options: None)
    setup = runpy.run_path(str(REPOSITORY / "setup.py"))
    ran: list[list[str]] = []

    def run(command: list[str]) -> SimpleNamespace:
        ran.append(command)
        failed = any(word in fails for word in command) or ("cpu" in fails and "-DPF_CUDA=ON" not in command)
        return SimpleNamespace(returncode=int(failed))

    monkeypatch.setattr(subprocess, "run", run)
    builder = SimpleNamespace(build_temp=str(tmp_path), get_ext_fullpath=lambda name: str(tmp_path / name))
    builder.run_cmake = lambda *arguments: setup["CMakeBuild"].run_cmake(builder, *arguments)
    known = setup["CMakeBuild"].build_extension.__globals__
    monkeypatch.setitem(known, "what_is_missing", lambda: None)
    monkeypatch.setitem(known, "cuda_options", lambda: ["-DPF_CUDA=ON"])
    make = setup["CMakeBuild"].build_extension
    if fails and build == "require":
        with pytest.raises(SystemExit, match="not compiled"):
            make(builder, SimpleNamespace(name="_C"))
        return
    make(builder, SimpleNamespace(name="_C"))
    said = capsys.readouterr().err
    assert ("installing without CUDA kernels" in said) is bool(fails)
    assert ("in pure Python" in said) is ("cpu" in fails)
    with_cuda = ["-DPF_CUDA=ON" in command for command in ran if "-S" in command]
    assert with_cuda == ([True, False] if fails else [True])
    folders = {command[command.index("-B") + 1] for command in ran if "-B" in command}
    assert len(folders) == len(with_cuda)
