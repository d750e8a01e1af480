"""What the tests of the CUDA kernels on the CPU are worth: simt.h on known kernels, and faults planted in ours."""

import subprocess
from pathlib import Path

import pytest
import torch

from tests.gpu.simt.build import changed_sources, compile_cpp, compiler
from tests.gpu.simt.library import ORDERS, SimtError
from tests.gpu.simt.losses import check_linear_dual_loss
from tests.gpu.simt.transformer import (
    Attention,
    Case,
    Tower,
    check_add_layer_norm,
    check_gelu,
    check_layer_norm_backward,
)
from tests.gpu.simt.updates import CHUNK, TENSOR, check_gram, check_update

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: the CUDA kernels cannot run on the CPU")

WRONG = "relative error|wrong count"
# which of csrc/cuda/*.cu a case needs
SOURCES = {
    "gram": "gradients",
    "updates": "gradients",
    "linear": "linear_dual_loss",
    "attention": "attention",
    "norm": "layer_norm",
    "gelu": "gelu",
}
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
    "sums of warps overwritten": (
        "attention_backward.cuh",
        "__syncthreads();  // of_warps may still be read",
        "",
        "attention",
        WRONG,
    ),
    "sums of warps read too early": (
        "attention_backward.cuh",
        "    __syncthreads();\n    A total = 0;",
        "    A total = 0;",
        "attention",
        WRONG,
    ),
    "sums of a lone block read too early": (
        "attention_backward.cuh",
        "__syncthreads();  // a block that is alone reads what its other threads have written",
        "",
        "attention",
        WRONG,
    ),
    "one last block for all keys of the prefix": (
        "attention_backward.cuh",
        "is_last_block(backward.tickets + sum,",
        "is_last_block(backward.tickets,",
        "attention",
        WRONG,
    ),
    "score of half the lanes": ("attention.cuh", "offset = kLanes / 2", "offset = kLanes / 4", "attention", WRONG),
    "groups of a warp that part": (
        "attention.cuh",
        "steps = warp_max(count);",
        "steps = count;",
        "attention",
        "deadlock",
    ),
    "query that does not see itself": ("attention.cuh", "query + 1};", "query};", "attention", WRONG),
    "segment that begins one row late": (
        "attention.cuh",
        "attention.offsets[middle] <= row",
        "attention.offsets[middle] < row",
        "attention",
        WRONG,
    ),
    "key that its own row does not see": (
        "attention_backward.cuh",
        "Span{item.row, attention.offsets[segment + 1]}",
        "Span{item.row + 1, attention.offsets[segment + 1]}",
        "attention",
        WRONG,
    ),
    "norm of half the lanes": ("layer_norm.cuh", "offset = kWarp / 2", "offset = kWarp / 4", "norm", WRONG),
    "variance of what is not there": ("layer_norm.cuh", "i < valid ?", "valid ?", "norm", WRONG),
    "pack behind the end": (
        "gelu.cuh",
        "store(out + begin, values, valid",
        "store(out + begin, values, N",
        "gelu",
        "outside",
    ),
}

# one of each operator and kind for `make test`: a fault is compiled for seconds
FIRST = {
    "wrong last block",
    "divergent collective",
    "no grid sync",
    "tile overwritten",
    "sums of warps read too early",
    "norm of half the lanes",
    "pack behind the end",
}


def test_simt_header_on_known_kernels() -> None:
    folder = Path(__file__).parent
    program = compile_cpp([folder / "self_test.cpp"], [folder], "self_test")
    result = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "ok\n"), result.stdout


def run_case(simt: Tower, case: str) -> None:
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
                case "attention":  # two blocks for a key of the prefix, and one
                    Attention(Case([1, 4, 2] * 40, prefix=5, heads=1, width=8, cotangents=1), torch.float32).check(simt)
                    Attention(Case([3, 5], prefix=3, heads=2, width=24, groups=2), torch.float32).check(simt)
                case "norm":
                    x = torch.randn(5, 71, generator=torch.Generator().manual_seed(seed)) + 1
                    check_add_layer_norm(simt, x, x)
                    check_layer_norm_backward(simt, 2, 5, 71, torch.float32)
                case "gelu":
                    x = torch.randn(1030, generator=torch.Generator().manual_seed(seed))
                    check_gelu(simt, x, approximate=0)


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=() if fault in FIRST else pytest.mark.slow) for fault in FAULTS]
)
def test_planted_faults_are_found(fault: str, tmp_path: Path) -> None:
    file, old, new, case, _ = FAULTS[fault]
    simt = Tower(changed_sources(file, old, new, tmp_path), SOURCES[case])
    with pytest.raises((AssertionError, SimtError), match=FAULTS[fault][-1]):
        run_case(simt, case)


@pytest.mark.parametrize("case", SOURCES)
def test_nothing_is_found_without_a_fault(case: str) -> None:
    run_case(Tower(), case)
