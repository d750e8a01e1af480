"""Guards the choice of a GPU backend for each operator, on GPUs that are made up: when it is made, and by what."""

import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import setuptools
import torch

from prograd_fast import backends, doctor
from prograd_fast.backends import choice, chunked_products, cuda, extension, gpu, triton, triton_kernels
from prograd_fast.backends.choice import FAMILIES, Family
from tests.ops.calls import CALLS
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


@pytest.mark.parametrize("package", ["triton", "pytorch-triton", "triton-windows", None])
def test_triton_of_another_name(
    package: str | None, gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error here would end the initialisation of CUDA, for everybody in the process."""

    def version(name: str) -> str:
        if name != package:
            raise PackageNotFoundError(name)
        return "3.5.0+git1"

    monkeypatch.setattr(triton, "find_spec", lambda name: object())
    monkeypatch.setattr(triton, "version", version)
    monkeypatch.setattr(triton, "packages_distributions", lambda: {} if package is None else {"triton": [package]})
    gpus((9, 0))
    reason = triton.missing()
    assert reason is None if package else "no installed package" in str(reason)


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
from prograd_fast.backends.choice import FAMILIES
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
used = backends.active()["cuda"]
assert set(backends.by_operator().values()) == set(used.split(" + "))
rows = [line for line in pf.show_config().splitlines() if line.startswith("GPU ")]
assert [line.split()[1].rstrip(",") for line in rows[1:]] == ([] if used == "reference" else list(FAMILIES)), rows
assert all(any(f" {name}: " in line for name in used.split(" + ")) for line in rows[1:]), rows
print(used)
"""


NEW = ("cuda + triton", "cuda", "triton")  # with Triton or without, by what is installed


@needs_cuda_build
@pytest.mark.parametrize(
    ("capability", "early", "expected"),
    [((9, 0), False, NEW), ((7, 0), False, ("reference",)), ((9, 0), True, NEW)],
    ids=["new", "old", "the user chose before"],
)
def test_the_choice_waits_until_cuda_is_initialised(
    capability: tuple[int, int], early: bool, expected: tuple[str, ...]
) -> None:
    """An import that asked for GPUs would break processes that fork afterwards."""
    program = IMPORT.replace("CAPABILITY", str(capability)).replace("EARLY", str(early))
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.strip() in (("reference",) if early else expected), done.stderr


class _Backends:
    """Backends that are made up: which can run, and what is registered, in order."""

    def __init__(self) -> None:
        self.missing = {"cuda": False, "triton": False}
        self.registered: list[tuple[str, tuple[str, ...]]] = []
        self.asked: list[str] = []

    def module(self, name: str) -> SimpleNamespace:
        def register(families: list[str]) -> Callable[[], None]:
            self.registered.append((name, tuple(families)))
            return lambda: self.registered.remove((name, tuple(families)))

        def missing() -> str | None:
            self.asked.append(name)
            return "not here." if self.missing[name] else None

        return SimpleNamespace(register=register, missing=missing, device=lambda: "cuda")


MIXED = {
    "dual_loss": Family(("dual_loss_out",), {"cuda": choice.SIMT, "triton": choice.INTERPRETER}, "cuda first"),
    "gelu": Family(("gelu_out", "gelu_backward_"), {"triton": "", "cuda": choice.SIMT}, "triton first"),
    "samples": Family(("sampled_log_probs_out",), {"cuda": ""}, "nobody else has it"),
}


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Backends]:
    """The table MIXED, and backends that are made up for it."""
    made_up, module = _Backends(), backends._module
    monkeypatch.setattr(backends, "_module", lambda name: module(name) if name == "cpu" else made_up.module(name))
    monkeypatch.setattr(backends, "FAMILIES", MIXED)
    monkeypatch.setattr(choice, "FAMILIES", MIXED)
    on_cpus = backends._in_use.get("cpu")
    assert "cuda" not in backends._in_use
    yield made_up
    backends._take_out("cuda")
    if on_cpus is not None and "cpu" not in backends._in_use:
        backends._use_on_cpus()


def by_the_table() -> None:
    """Choose as when CUDA is initialised."""
    backends._use_on_gpus({name: tuple(family.backends) for name, family in backends.FAMILIES.items()})


@pytest.mark.parametrize(
    ("lacking", "expected"),
    [
        ((), [("cuda", ("dual_loss", "samples")), ("triton", ("gelu",))]),
        (("triton",), [("cuda", ("dual_loss", "gelu", "samples"))]),
        (("cuda",), [("triton", ("dual_loss", "gelu"))]),
        (("cuda", "triton"), []),
    ],
)
def test_each_operator_gets_the_first_backend_that_can_run(
    lacking: tuple[str, ...], expected: list[Any], made_up: _Backends
) -> None:
    made_up.missing |= dict.fromkeys(lacking, True)
    by_the_table()
    assert made_up.registered == expected
    assert sorted(made_up.asked) == ["cuda", "triton"]  # once each: to ask imports a module
    by_family = {family: name for name, families in expected for family in families}
    assert backends.by_operator() == {
        operator: by_family.get(name, "reference") for name, family in MIXED.items() for operator in family.operators
    }
    assert backends.active()["cuda"] == (" + ".join(name for name, _ in expected) or "reference")


def test_a_backend_that_comes_first_everywhere_is_the_only_one_that_is_asked_for(
    made_up: _Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "FAMILIES", {name: MIXED[name] for name in ("dual_loss", "samples")})
    by_the_table()
    assert made_up.asked == ["cuda"]


def test_the_user_overrules_the_table(made_up: _Backends) -> None:
    by_the_table()
    backends.use("triton")  # it lacks the samples
    assert made_up.registered == [("triton", ("dual_loss", "gelu")), ("cuda", ("samples",))]
    assert backends.active()["cuda"] == "cuda + triton"
    backends.use("cuda")
    assert made_up.registered == [("cuda", ("dual_loss", "gelu", "samples"))]
    cpu = backends.active()["cpu"]
    backends.use(cpu if cpu == "cpu" else "cuda")  # each device has its own
    assert made_up.registered == [("cuda", ("dual_loss", "gelu", "samples"))]
    made_up.missing["triton"] = True
    with pytest.raises(RuntimeError, match="triton: not here"):
        backends.use("triton")
    assert made_up.registered == [("cuda", ("dual_loss", "gelu", "samples"))]
    backends.use("reference")
    assert made_up.registered == []
    assert backends.active() == {"cpu": "reference", "cuda": "reference"}


def test_a_backend_that_fails_leaves_nothing_of_the_others(made_up: _Backends, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        module = made_up.module(name)
        if name == "triton":
            module.register = lambda families: int("no driver")
        return module

    with monkeypatch.context() as patch:
        patch.setattr(backends, "_module", broken)
        with pytest.raises(ValueError, match="no driver"):
            by_the_table()
    assert made_up.registered == []
    assert backends.active()["cuda"] == "reference"
    by_the_table()
    assert backends.active()["cuda"] == "cuda + triton"


def test_the_doctor_says_which_and_why(made_up: _Backends) -> None:
    by_the_table()
    lines = {line.split("  ")[0]: line for line in doctor.show_config().splitlines() if line.startswith("GPU")}
    assert lines["GPU dual_loss"].endswith("  cuda: cuda first (by counts, not measured)")
    assert "  gelu on triton, samples on cuda: never executed" in lines["GPU, unverified"]
    backends.use("cuda")
    assert "  cuda: triton is overruled by prograd_fast.backends.use" in doctor.show_config()
    made_up.missing["triton"] = True
    assert "  cuda: triton is missing" in doctor.show_config()


def test_the_table_is_complete() -> None:
    """Every operator that writes is there once, in the family of its file, and whoever is in its list has it."""
    operators = [operator for family in FAMILIES.values() for operator in family.operators]
    composed = {"head_dual_loss_out"}  # products of PyTorch around `dual_loss_out`, the same on every device
    written = sorted(name for name in CALLS if name.endswith(("_out", "_")))
    assert sorted([*operators, *composed]) == written
    of_triton = triton_kernels.operators() | chunked_products.OPERATORS
    for name, family in FAMILIES.items():
        source = (REPOSITORY / "prograd_fast" / "ops" / f"{name}.py").read_text()
        for operator in family.operators:
            assert f'"{operator.removesuffix("_out")}' in source, f"{operator} is not defined in {name}.py"
            assert ("triton" in family.backends) == (operator in of_triton)
        compiled = (REPOSITORY / "csrc" / "cuda" / f"{name}.cpp").exists()
        assert ("cuda" in family.backends) == (compiled or name == "linear_dual_loss")
        assert family.why
    assert chunked_products.OPERATORS.keys() == set(FAMILIES["linear_dual_loss"].operators)


def test_what_was_executed_has_a_test() -> None:
    """Nobody claims an execution that no file here does; a GPU is named with the day."""
    files = {
        choice.SIMT: "tests/gpu/simt/test_{}.py",
        choice.INTERPRETER: "tests/gpu/triton/interpreted/{}.py",
        choice.SAME_CODE: "tests/gpu/test_chunked_products.py",
    }
    for name, family in FAMILIES.items():
        for how in family.backends.values():
            if how in files:
                assert (REPOSITORY / files[how].format(name)).exists(), name
            else:
                assert how == "" or re.search(r"\d{4}-\d\d-\d\d", how), f"{name}: {how}"
    assert choice.unverified() == []


def table() -> list[str]:
    """The table of docs/kernels.md."""
    rows = ["| operators | order | why | rests on | executed |", "| --- | --- | --- | --- | --- |"]
    for family in FAMILIES.values():
        executed = "; ".join(f"{name}: {how or 'nowhere'}" for name, how in family.backends.items())
        operators = ", ".join(f"`{operator}`" for operator in family.operators)
        rows.append(f"| {operators} | {', '.join(family.backends)} | {family.why} | {family.basis} | {executed} |")
    return rows


def test_the_page_shows_the_table() -> None:
    page = (REPOSITORY / "docs" / "kernels.md").read_text()
    assert "\n".join(table()) in page, "docs/kernels.md, Which backend runs what: " + "\n".join(["", *table()])


def test_families_of_triton() -> None:
    def registered(name: str) -> bool:
        return torch._C._dispatch_has_kernel_for_dispatch_key(f"prograd_fast::{name}", "CUDA")

    unregister = triton.register(families=["gelu", "linear_dual_loss"])
    mine = {name for name in CALLS if registered(name)}
    unregister()
    assert mine == {"gelu_out", "gelu_backward_", "linear_dual_loss_out", "linear_cross_entropy_out"}
    assert not any(map(registered, mine))


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
