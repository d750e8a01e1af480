"""The gate of the CUDA kernels sees what it is there to see. `make kernels` runs it over all of them."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.paths import REPOSITORY


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(REPOSITORY / "tools" / "kernels"))
    import cuda_gate

    yield cuda_gate
    sys.modules.pop("cuda_gate", None)


def good_row(gate: ModuleType) -> Any:
    limits = json.loads(gate.LIMITS.read_text())["gram fp32, 40 tensors sm_90"]
    numbers = {"registers": limits["registers"], "spills": 0, "stack": 0, "wide_loads": 2, "wide_stores": 0}
    texts = {"kernel": "gram fp32, 40 tensors", "arch": "sm_90", "shared": "0 + 0", "bytes_per_element": "8 / 8"}
    return gate.Row(**numbers, **texts, narrow=limits["narrow"], threads=512, occupancy=0.5)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"spills": 3}, "3 local accesses"),
        ({"stack": 8}, "8 bytes of stack"),
        ({"registers": 255}, "255 registers, at most"),
        ({"narrow": 999}, "999 narrow global accesses"),
        ({"wide_loads": 1}, "1 loads and 0 stores of 16 bytes"),
        ({"kernel": "gram fp8"}, "not in cuda_limits.json"),
    ],
)
def test_faults(gate: ModuleType, change: dict[str, Any], what: str) -> None:
    good = good_row(gate)
    limits = {good.key: json.loads(gate.LIMITS.read_text())[good.key]}
    assert gate.judge([good], limits) == []
    assert any(what in fault for fault in gate.judge([dataclasses.replace(good, **change)], limits))


@pytest.mark.parametrize(
    ("kernel", "per_element", "fault"),
    [
        ("dual_loss fp32, 4 at a time, T=1", 60.0, None),
        ("dual_loss fp32, 4 at a time, T=1", 60.5, "60.5 instructions in loops an element, at most 60"),
        ("dual_loss bf16, 8 at a time", None, "None instructions"),  # nobody could count them
        ("dual_loss fp32, 1 at a time", 90.5, "at most 90"),
        ("dual_loss fp64, 2 at a time", 300.0, None),
    ],
)
def test_the_budget_of_instructions(
    gate: ModuleType, kernel: str, per_element: float | None, fault: str | None
) -> None:
    row = dataclasses.replace(good_row(gate), kernel=kernel, per_element=per_element, wide_stores=2)
    limits = {row.key: {"registers": row.registers, "narrow": row.narrow}}
    faults = gate.judge([row], limits)
    assert [fault in text for text in faults] == [True] if fault else faults == []


def test_names(gate: ModuleType) -> None:
    readable = {
        "gram_kernel<float, 400>(": "gram fp32, 400 tensors",
        "dual_loss_kernel<float, 4, true>(": "dual_loss fp32, 4 at a time, T=1",
        "dual_loss_kernel<__half, 8, false>(": "dual_loss fp16, 8 at a time",
        "attention_backward_kernel<float, 8, 2>(": "attention_backward fp32, 8 lanes, K=2",
        "update_kernel<__half, prograd::cuda::AdamWRule<__half, float>, 40>(": "adamw fp16, 40 tensors, moments fp32",
        "update_kernel<float, prograd::cuda::StoreProjected<float>, 400>(": "project fp32, 400 tensors",
        "gelu_kernel<double>(": "gelu fp64",
    }
    for mangled, name in readable.items():
        assert gate.readable(f"void prograd::cuda::{mangled}prograd::cuda::X)")[0] == name


# a loop of four instructions, one of them out of line, between code that is not repeated; then a loop of one
SASS = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/              @!P0 BRA `(.L_x_4) ;
.L_x_1:
        /*0020*/                   FADD R2, R2, 1 ;
        /*0030*/               @P1 BRA `(.L_x_3) ;
.L_x_2:
        /*0040*/               @P0 BRA `(.L_x_1) ;
        /*0050*/                   BRA `(.L_x_4) ;
.L_x_3:
        /*0060*/                   MUFU.EX2 R3, R2 ;
        /*0070*/                   BRA `(.L_x_2) ;
.L_x_4:
        /*0080*/                   MUFU.RCP R3, R2 ;
.L_x_5:
        /*0090*/               @P2 BRA `(.L_x_5) ;
        /*00a0*/                   EXIT ;
.L_x_6:
        /*00b0*/                   BRA `(.L_x_6) ;
"""


def test_instructions_in_loops(gate: ModuleType) -> None:
    """Without the loop in which every kernel ends, which is never reached."""
    assert [text.split()[0] for text in gate.gates.in_loops(SASS)] == ["FADD", "@P1", "@P0", "MUFU.EX2", "BRA", "@P2"]
    counts = gate.gates.instructions(SASS)
    assert (counts["loop_instructions"], counts["loop_special"]) == (6, 1)


def compiled(source: str, folder: Path) -> Path:
    """The machine code of a source for sm_90."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc: nothing to compile for a GPU")
    (folder / "kernel.cu").write_text(source)
    cubin = folder / "kernel.cubin"
    command = [nvcc, "-O3", "-gencode", "arch=compute_90,code=sm_90", "-cubin", "-o", cubin, folder / "kernel.cu"]
    subprocess.run(command, check=True)
    return cubin


# for each of 4 elements 64 more than a dual loss has; the compiler must not unroll
EXCESS = """
namespace prograd::cuda {
template <typename T, int N, bool unit_temperature>
__global__ void dual_loss_kernel(float4* rows, int n, float a) {
#pragma unroll 1
  for (int k = threadIdx.x; k < n; k += blockDim.x) {
    float4 x = rows[k];
#pragma unroll
    for (int i = 0; i < COUNT; ++i) x = {x.x * a + x.y, x.y * a + x.z, x.z * a + x.w, x.w * a + x.x};
    rows[k] = x;
  }
}
template __global__ void dual_loss_kernel<float, 4, true>(float4*, int, float);
}
"""


@pytest.mark.parametrize(("count", "found"), [(32, False), (64, True)])
def test_a_real_excess_of_instructions_is_seen(gate: ModuleType, tmp_path: Path, count: int, found: bool) -> None:
    (row,) = gate.read_kernels(compiled(EXCESS.replace("COUNT", str(count)), tmp_path), 90)
    assert row.kernel == "dual_loss fp32, 4 at a time, T=1"
    assert count < row.per_element < count + 8
    assert any("instructions in loops" in fault for fault in gate.judge([row], {})) == found


# the sum of many values that are all alive at once, in 32 registers
SPILLS = """
namespace prograd::cuda {
template <typename T, int kTensors>
__global__ void __launch_bounds__(1024, 2) gram_kernel(const T* from, T* to) {
  T values[64];
  for (int i = 0; i < 64; ++i) values[i] = from[i * 1024 + threadIdx.x];
  for (int k = 0; k < 64; ++k)
    for (int i = 0; i < 64; ++i) values[i] += values[(i + 7) % 64] * values[(i + 31) % 64];
  for (int i = 0; i < 64; ++i) to[i * 1024 + threadIdx.x] = values[i];
}
template __global__ void gram_kernel<float, 40>(const float*, float*);
}
"""


def test_a_real_spill_and_real_narrow_accesses_are_seen(gate: ModuleType, tmp_path: Path) -> None:
    (row,) = gate.read_kernels(compiled(SPILLS, tmp_path), 90)
    assert row.kernel == "gram fp32, 40 tensors"
    assert row.spills > 0
    assert row.stack > 0
    assert (row.wide_loads, row.narrow) == (0, 128)


def test_every_architecture_is_there(gate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that was built for fewer architectures than are judged is a fault."""
    monkeypatch.setattr(gate, "EXTENSION", SimpleNamespace(__file__="_C.so"))
    monkeypatch.setattr(gate, "cubins", lambda extension, folder: [(folder / "a.cubin", arch) for arch in (80, 100)])
    monkeypatch.setattr(gate, "read_kernels", lambda cubin, arch: [f"row {arch}"])
    assert gate.read_all() == (["row 80", "row 100"], ["the installed extension has no kernels for sm_90"])
