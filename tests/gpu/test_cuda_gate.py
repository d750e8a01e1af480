"""The compile gate of the CUDA kernels sees what it is there to see. `make kernels` runs it over all of them."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
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
    limits = json.loads(gate.LIMITS.read_text())["gram fp32 sm_90"]
    numbers = {"registers": limits["registers"], "spills": 0, "stack": 0, "wide_loads": 2, "wide_stores": 0}
    texts = {"kernel": "gram fp32", "arch": "sm_90", "shared": "0 + 0", "bytes_per_element": "8 / 8"}
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


# the sum of many values that are all alive at once, in 32 registers
SPILLS = """
namespace prograd::cuda {
template <typename T>
__global__ void __launch_bounds__(1024, 2) gram_kernel(const T* from, T* to) {
  T values[64];
  for (int i = 0; i < 64; ++i) values[i] = from[i * 1024 + threadIdx.x];
  for (int k = 0; k < 64; ++k)
    for (int i = 0; i < 64; ++i) values[i] += values[(i + 7) % 64] * values[(i + 31) % 64];
  for (int i = 0; i < 64; ++i) to[i * 1024 + threadIdx.x] = values[i];
}
template __global__ void gram_kernel<float>(const float*, float*);
}
"""


def test_a_real_spill_and_real_narrow_accesses_are_seen(gate: ModuleType, tmp_path: Path) -> None:
    nvcc = gate.find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc: nothing to compile for a GPU")
    source = tmp_path / "spills.cu"
    source.write_text(SPILLS)
    (row,) = gate.compile_kernels(nvcc, source, 90, tmp_path)
    assert row.kernel == "gram fp32"
    assert row.spills > 0
    assert row.stack > 0
    assert (row.wide_loads, row.narrow) == (0, 128)
