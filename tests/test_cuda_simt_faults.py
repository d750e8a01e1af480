"""What the tests of the CUDA kernels on the CPU are worth: simt.h on known kernels, and faults planted in ours."""

import subprocess
from pathlib import Path

import pytest
import torch

from tests.simt.build import changed_sources, compile_cpp, compiler
from tests.simt.library import ORDERS, Library, SimtError
from tests.simt.losses import check_linear_dual_loss
from tests.simt.updates import CHUNK, TENSOR, check_gram, check_update

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: the CUDA kernels cannot run on the CPU")

WRONG = "relative error|wrong count"
# name: file, what stands there, what it becomes, the case that must fail, what it must say
FAULTS: dict[str, tuple[str, str, str, str, str]] = {
    "no barrier before a shared write": (
        "reduce.cuh",
        "__syncthreads();  // of_warp may still be read by the previous reduction",
        "",
        "updates",
        WRONG,
    ),
    "no barrier after a shared write": (
        "reduce.cuh",
        "of_warp[threadIdx.x / kWarp] = value;\n  __syncthreads();",
        "of_warp[threadIdx.x / kWarp] = value;",
        "updates",
        WRONG,
    ),
    "wrong last block": ("reduce.cuh", "== blocks - 1", "== blocks - 2", "gram", WRONG),
    "wrong start of a shuffle tree": ("reduce.cuh", "offset = kWarp / 2", "offset = kWarp / 4", "gram", WRONG),
    "divergent collective": (
        "reduce.cuh",
        "value = merge(value, shuffle(value, offset));",
        "if (int(threadIdx.x) % kWarp < 2 * offset) value = merge(value, shuffle(value, offset));",
        "gram",
        "deadlock",
    ),
    "no barrier before the last block is chosen": (
        "reduce.cuh",
        "__syncthreads();  // every thread has written what the last block will read",
        "",
        "linear",
        WRONG,
    ),
    "context overwritten": (
        "update.cuh",
        "__syncthreads();  // context may still be read for the previous chunk",
        "",
        "updates",
        WRONG,
    ),
    "no grid sync": (
        "update.cuh",
        "cooperative_groups::this_grid().sync();",
        "__syncthreads();",
        "updates",
        WRONG,
    ),
    "step advanced too early": (
        "update.cuh",
        "is_last_block(plan.ticket, gridDim.x)",
        "blockIdx.x == 0",
        "updates",
        WRONG,
    ),
    "tile overwritten": (
        "linear_dual_loss.cuh",
        "__syncthreads();  // the tiles may still be read",
        "",
        "linear",
        WRONG,
    ),
}


def test_simt_header_on_known_kernels() -> None:
    folder = Path(__file__).parent / "simt"
    program = compile_cpp([folder / "self_test.cpp"], [folder], "self_test")
    result = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "ok\n"), result.stdout


def run_case(simt: Library, case: str) -> None:
    """Small enough to repeat, and with a race wherever a fault could make one."""
    for seed in range(2):
        for order in ORDERS:
            simt.schedule(order, seed, resident_blocks=3)
            match case:
                case "gram":
                    check_gram(simt, [(3 * CHUNK,)], torch.float32, TENSOR, shift=0)
                case "updates":
                    check_update(simt, "adamw", [(6 * CHUNK,), (40,), (9,), (50,), (7,)], torch.float32, TENSOR)
                case "linear":
                    check_linear_dual_loss(simt, torch.float32, rows=300, classes=17, width=40)


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault: str, tmp_path: Path) -> None:
    file, old, new, case, _ = FAULTS[fault]
    simt = Library(changed_sources(file, old, new, tmp_path), "linear_dual_loss" if case == "linear" else "gradients")
    with pytest.raises((AssertionError, SimtError), match=FAULTS[fault][-1]):
        run_case(simt, case)


@pytest.mark.parametrize("case", ["gram", "updates", "linear"])
def test_nothing_is_found_without_a_fault(case: str) -> None:
    run_case(Library(), case)
