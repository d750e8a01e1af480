"""Compile every Triton kernel for real GPUs, without one, and judge what comes out.

The launchers of `prograd_fast.backends.triton_kernels` run on small CPU tensors with Triton's launch replaced by a
compilation for the target, so that types, constants and alignment are the ones that production has. Registers and SASS
come from the tools in the Triton wheel. A kernel fails when it spills, when it needs more registers or makes more
narrow (below 16 bytes) global accesses than `triton_limits.json` records, or when compiling takes over a minute of a
processor. Every case has a process of its own, so that one that fails takes no other with it.

    python tools/kernels/triton_gate.py                        judge; print the table
    python tools/kernels/triton_gate.py --record               write the limits from what comes out now
    python tools/kernels/triton_gate.py --json triton.json     also write the rows, for table.py
"""

import multiprocessing
import os
import resource
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gates  # beside this file
import torch
from gates import ARCHITECTURES, Limits, Row, find_tool
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from prograd_fast.backends.triton_kernels import operators

LIMITS = Path(__file__).with_name("triton_limits.json")
SECONDS = 60  # of a processor, for the kernels of one case

ops = SimpleNamespace(**operators())


# ---- what is compiled: the launchers, over dtypes and sizes that choose every kernel


def _losses(n_rows: int, n_columns: int, dtype: torch.dtype, **change: Any) -> None:
    accumulation = torch.promote_types(dtype, torch.float32)
    ops.dual_loss_out(
        *torch.zeros(2, n_rows, n_columns, dtype=dtype), torch.zeros(n_rows, dtype=torch.int64),
        change.get("offset"), change.get("weight"), change.get("weight"), 2.0, False, 1,
        losses=torch.empty(2, dtype=accumulation), cotangents=torch.empty(2, n_rows, n_columns, dtype=accumulation),
        correct=torch.empty((), dtype=torch.int64),
    )  # fmt: skip


def _samples(n_columns: int, dtype: torch.dtype) -> None:
    logits, accumulation = torch.zeros(20, 4, n_columns, dtype=dtype), torch.promote_types(dtype, torch.float32)
    losses, labels = torch.empty((), dtype=accumulation), torch.zeros(4, dtype=torch.int64)
    ops.sampled_cross_entropy_out(
        logits, labels, 1, losses=losses, cotangents=torch.empty_like(logits, dtype=accumulation)
    )
    ops.sampled_log_probs_out(logits, log_probs=torch.empty(4, n_columns, dtype=accumulation))


def _differences(size: int, dtype: torch.dtype, soft_wing: bool) -> None:
    x, t = torch.zeros(2, size, dtype=dtype)
    loss, cotangents = (torch.empty(shape, dtype=torch.promote_types(dtype, torch.float32)) for shape in ((), size))
    ops.difference_loss_out(x, t, soft_wing, 2.0, 20.0, 0.5, 1.0, loss=loss, cotangents=cotangents)


def _structure(dtype: torch.dtype) -> None:
    x, accumulation = torch.zeros(4, 98, 2, dtype=dtype), torch.promote_types(dtype, torch.float32)
    losses, cotangents = (torch.empty(shape, dtype=accumulation) for shape in (2, (2, 4, 98, 2)))
    ends = torch.arange(98)
    ops.structure_loss_out(x, x, ends, ends, 2.0, 20.0, 0.5, 1.0, losses=losses, cotangents=cotangents)


def _focal(gamma: float, dtype: torch.dtype) -> None:
    z, accumulation = torch.zeros(2, 448 * 448, dtype=dtype), torch.promote_types(dtype, torch.float32)
    losses, cotangents = (torch.empty(shape, dtype=accumulation) for shape in (2, z.shape))
    ops.normalised_focal_loss_out(z, z.long(), 0.5, gamma, -1.0, 1e-12, losses=losses, cotangents=cotangents)


def _heat_maps(dtype: torch.dtype) -> None:
    maps, points, peaks = torch.zeros(1, 2, 64, 64, dtype=dtype), torch.zeros(1, 2, 2), torch.zeros(1, 2).long()
    ops.local_soft_argmax_out(maps, 5, 10.0, points=points, peaks=peaks)
    ops.local_soft_argmax_backward_out(points, maps, peaks, 5, 10.0, d_maps=maps.clone())


def _edges(dtype: torch.dtype) -> None:
    x, logits, ends = torch.zeros(4, 98, 128, dtype=dtype), torch.zeros(294, dtype=dtype), torch.arange(294) % 98
    graph = logits, ends, ends, False
    ops.edge_softmax_sum_out(x, x, *graph, y=x.clone())
    results = {"d_own": x.clone(), "d_other": x.clone(), "d_logits": logits.clone()}
    ops.edge_softmax_sum_backward_out(x, x, x, *graph, **results)


def _lists(size: int, n: int, dtype: torch.dtype) -> list[list[Tensor]]:
    return [[torch.zeros(size, dtype=dtype)] for _ in range(n)]


def _gram(size: int, dtype: torch.dtype) -> None:
    ops.gram_out(*_lists(size, 2, dtype), 0, entries=torch.empty(1, 3))


def _project(size: int, dtype: torch.dtype, coefficients: Tensor | None = None) -> None:
    task, general, projected = _lists(size, 3, dtype)
    ops.project_out(task, general, coefficients, 1.0, 0.0, 0, entries=torch.empty(1, 3), projected=projected)


def _adamw(size: int, dtype: torch.dtype, moments: torch.dtype, amsgrad: bool = False, scaled: bool = False) -> None:
    factor = torch.ones(()) if scaled else None
    coefficients = torch.zeros(1, 2) if scaled else None  # both optional inputs in the same variant
    ops.project_adamw_(
        *_lists(size, 3, dtype), *_lists(size, 3, moments), [torch.zeros(())], torch.empty(1, 3), coefficients, factor,
        1e-3, 0.9, 0.999, 1e-8, 1e-2, 1.0, 0.0, 0, amsgrad, False, factor,
    )  # fmt: skip


def _sgd(size: int, dtype: torch.dtype, buffers: bool) -> None:
    ops.project_sgd_(
        *_lists(size, 3, dtype), [torch.zeros(size, dtype=dtype)] if buffers else [], torch.empty(1, 3), None, None,
        1e-3, 0.9, 0.0, 1e-2, 1.0, 0.0, 0, False, False, False, None,
    )  # fmt: skip


def _steps(size: int, dtype: torch.dtype) -> None:
    _gram(size, dtype)
    _project(size, dtype)
    _project(size, dtype, torch.zeros(1, 2))
    _adamw(size, dtype, dtype)
    _sgd(size, dtype, True)


def _row_steps(n_rows: int, width: int, dtype: torch.dtype) -> None:
    """Each row is a unit."""
    make = lambda n: [[torch.zeros(n_rows, width, dtype=dtype)] for _ in range(n)]  # noqa: E731
    entries = torch.empty(n_rows, 3)
    ops.gram_out(*make(2), 1, entries=entries)
    task, general, projected = make(3)
    ops.project_out(task, general, None, 1.0, 0.0, 1, entries=entries, projected=projected)
    ops.project_adamw_(
        *make(5), [], [torch.zeros(())], entries, None, None, 1e-3, 0.9, 0.999, 1e-8, 1e-2, 1.0, 0.0, 1, False, False,
        None,
    )  # fmt: skip
    ops.project_sgd_(*make(4), entries, None, None, 1e-3, 0.9, 0.0, 1e-2, 1.0, 0.0, 1, False, False, False, None)


def _attention(heads: int, width: int, dtype: torch.dtype, last: bool = False) -> None:
    offsets, leading, d = torch.arange(0, 17, 4), 17, heads * width
    n_rows = leading + 16
    n_queries = 4 if last else n_rows
    # queries, keys and values are columns of one matrix product, and so are their gradients
    query, key_value = torch.zeros(1, n_rows, 3 * d, dtype=dtype).split([d, 2 * d], -1)
    d_query, d_key_value = torch.zeros(2, 1, n_rows, 3 * d, dtype=dtype).split([d, 2 * d], -1)
    inputs = query[:, :n_queries], key_value, None, leading, offsets, heads, width**-0.5, last
    ops.shared_prefix_attention_out(*inputs, out=torch.zeros(1, n_queries, d, dtype=dtype))
    ops.shared_prefix_attention_backward_out(
        torch.zeros(2, 1, n_queries, d, dtype=dtype), *inputs,
        d_query=d_query[:, :, :n_queries], d_key_value=d_key_value, d_prefix=None,
    )  # fmt: skip


def _rows(width: int, dtype: torch.dtype) -> None:
    x, weight, statistics = torch.zeros(4, width, dtype=dtype), torch.ones(width), torch.zeros(4, 2)
    ops.add_layer_norm_out(x, x, weight, weight, 1e-5, total=x, normed=x, statistics=statistics)
    ops.layer_norm_backward_(*torch.zeros(2, 2, 4, width, dtype=dtype), x, statistics, weight)


def _gelu(kind: int, dtype: torch.dtype) -> None:
    x = torch.zeros(4, 2048, dtype=dtype)
    ops.gelu_out(x, kind, out=x)
    ops.gelu_backward_(torch.zeros(2, 4, 2048, dtype=dtype), x, kind)


def _linear_gelu(n_rows: int, kind: int, dtype: torch.dtype) -> None:
    x, up, down = (torch.zeros(shape, dtype=dtype) for shape in ((n_rows, 512), (2048, 512), (512, 2048)))
    hidden, active = torch.zeros(2, n_rows, 2048, dtype=dtype)
    ops.linear_gelu_out(x, up, torch.zeros(2048, dtype=dtype), kind, hidden=hidden, active=active)
    d_hidden = torch.zeros(2, n_rows, 2048, dtype=dtype)
    ops.linear_gelu_backward_out(torch.zeros(2, n_rows, 512, dtype=dtype), down, hidden, kind, d_hidden=d_hidden)


def _shift(dtype: torch.dtype) -> None:
    x, scale = torch.zeros(2, 8, 4, 16, 16, dtype=dtype), torch.ones(2, 8)
    shift = [8], [1]
    ops.affine_shift_out(x, scale, x, *shift, out=x)
    ops.affine_shift_backward_out(x, x, scale, *shift, d_x=x, d_scale=scale)


def _clips(size: int, dtype: torch.dtype) -> None:
    x, gate = torch.zeros(2, 4, 64, size, size, dtype=dtype), torch.zeros(2, 2, 4, size, size, dtype=dtype)
    phi, means = torch.zeros(2, 2, 32, 4), torch.zeros(2, 4, 32, 4)
    ops.gate_shift_means_out(x, gate, means=means)
    ops.gate_shift_fuse_out(x, gate, phi, out=x)
    ops.gate_shift_slopes_out(x, x, gate, d_phi=phi)
    ops.gate_shift_fuse_backward_out(x, x, gate, phi, means, d_x=x, d_gate=gate)


F32, BF16 = torch.float32, torch.bfloat16
SMALL, LARGE = 8192, 1 << 17  # a context of 16 x 512; two launches


@dataclass(frozen=True)
class Case:
    """One launch, and the bytes of its elements."""

    launch: Callable[[], None]
    storage: int  # of logits, parameters and gradients
    moments: int = 0  # of optimizer states
    states: int = 2  # of AdamW


CASES = {
    "1000 classes, fp32": Case(lambda: _losses(2, 1000, F32), 4),
    "1000 classes, bf16": Case(lambda: _losses(2, 1000, BF16), 2),
    "1000 classes, fp32, weights, offset": Case(
        lambda: _losses(2, 1000, F32, weight=torch.zeros(2), offset=torch.zeros(1000)), 4
    ),
    "8192 classes, fp32": Case(lambda: _losses(2, 8192, F32), 4),
    "8192 classes, bf16": Case(lambda: _losses(2, 8192, BF16), 2),
    "8191 classes (rows not aligned), fp32": Case(lambda: _losses(8, 8191, F32), 4),
    "21840 classes, fp32": Case(lambda: _losses(2, 21840, F32), 4),
    "21840 classes, bf16": Case(lambda: _losses(2, 21840, BF16), 2),
    "21841 classes (rows not aligned), fp32": Case(lambda: _losses(2, 21841, F32), 4),
    "20 samples, fp32": Case(lambda: _samples(1000, F32), 4),
    "20 samples, bf16": Case(lambda: _samples(1000, BF16), 2),
    "squared error, fp32": Case(lambda: _differences(LARGE, F32, False), 4),
    "squared error, bf16": Case(lambda: _differences(LARGE, BF16, False), 2),
    "soft wing, fp32": Case(lambda: _differences(LARGE, F32, True), 4),
    "soft wing, bf16": Case(lambda: _differences(LARGE, BF16, True), 2),
    "98 landmarks, fp32": Case(lambda: _structure(F32), 4),
    "98 landmarks, bf16": Case(lambda: _structure(BF16), 2),
    "masks of 448 x 448, fp32": Case(lambda: _focal(2.0, F32), 4),
    "masks of 448 x 448, bf16": Case(lambda: _focal(2.0, BF16), 2),
    "masks of 448 x 448, any exponent, fp32": Case(lambda: _focal(0.5, F32), 4),
    "maps of 64 x 64, fp32": Case(lambda: _heat_maps(F32), 4),
    "maps of 64 x 64, bf16": Case(lambda: _heat_maps(BF16), 2),
    "98 nodes, 294 edges, fp32": Case(lambda: _edges(F32), 4),
    "98 nodes, 294 edges, bf16": Case(lambda: _edges(BF16), 2),
    "8192 elements, fp32": Case(lambda: _steps(SMALL, F32), 4, 4),
    "8192 elements, bf16": Case(lambda: _steps(SMALL, BF16), 2, 2),
    "131072 elements, fp32": Case(lambda: _steps(LARGE, F32), 4, 4),
    "131072 elements, bf16": Case(lambda: _steps(LARGE, BF16), 2, 2),
    "131072 elements, bf16, fp32 moments": Case(lambda: _adamw(LARGE, BF16, F32), 2, 4),
    "131072 elements, fp32, amsgrad, rule, GradScaler": Case(
        lambda: _adamw(LARGE, F32, F32, amsgrad=True, scaled=True), 4, 4, states=3
    ),
    "4096 rows of 16, fp32": Case(lambda: _row_steps(4096, 16, F32), 4, 4),
    "16 rows of 512, bf16": Case(lambda: _row_steps(16, 512, BF16), 2, 2),
    "8 heads of 64, fp32": Case(lambda: _attention(8, 64, F32), 4),
    "8 heads of 64, bf16": Case(lambda: _attention(8, 64, BF16), 2),
    "8 heads of 64, last rows, bf16": Case(lambda: _attention(8, 64, BF16, last=True), 2),
    "4 heads of 32, fp32": Case(lambda: _attention(4, 32, F32), 4),
    "4 heads of 128, fp32": Case(lambda: _attention(4, 128, F32), 4),
    "4 heads of 128, bf16": Case(lambda: _attention(4, 128, BF16), 2),
    "512 wide, fp32": Case(lambda: _rows(512, F32), 4),
    "512 wide, bf16": Case(lambda: _rows(512, BF16), 2),
    "2048 wide, erf, fp32": Case(lambda: _gelu(0, F32), 4),
    "2048 wide, erf, bf16": Case(lambda: _gelu(0, BF16), 2),
    "2048 wide, sigmoid, bf16": Case(lambda: _gelu(2, BF16), 2),
    "64 rows of 512 to 2048, sigmoid, fp32": Case(lambda: _linear_gelu(64, 2, F32), 4),
    "64 rows of 512 to 2048, sigmoid, bf16": Case(lambda: _linear_gelu(64, 2, BF16), 2),
    "2048 rows of 512 to 2048, sigmoid, fp32": Case(lambda: _linear_gelu(2048, 2, F32), 4),
    "2048 rows of 512 to 2048, erf, bf16": Case(lambda: _linear_gelu(2048, 0, BF16), 2),
    "frames of 16 x 16, fp32": Case(lambda: _shift(F32), 4),
    "frames of 16 x 16, bf16": Case(lambda: _shift(BF16), 2),
    "planes of 28 x 28, fp32": Case(lambda: _clips(28, F32), 4),
    "planes of 28 x 28, bf16": Case(lambda: _clips(28, BF16), 2),
}

# (moved, least) bytes of an element. What a program reads again comes from the caches where it owns it (`*_units`); in
# the step of two launches the gradients are read by both (`gram_chunks`, then `*_chunks`). Kernels that are not here
# work on sums, or are bound by arithmetic.
BYTES: dict[str, Callable[[Case], tuple[int, int]]] = {
    "dual_loss_rows": lambda c: (2 * c.storage + 8,) * 2,
    "dual_loss_sums": lambda c: (2 * c.storage, 2 * c.storage),  # of a row in parts, which are read again
    "dual_loss_cotangents": lambda c: (2 * c.storage + 8,) * 2,
    "softmax_sums": lambda c: (c.storage, c.storage),
    "sampled_cotangents": lambda c: (c.storage + 4, c.storage + 4),  # what softmax_sums read is in a cache if it fits
    "mean_log_probs": lambda c: (c.storage, c.storage),
    "differences": lambda c: (2 * c.storage + 4, 2 * c.storage + 4),
    # a slope more than the least is written, and read by structure_back
    "structure_losses": lambda c: (2 * c.storage + 8, 2 * c.storage + 4),
    "structure_back": lambda c: (8, 8),
    "focal_weights": lambda c: (c.storage + 8,) * 2,
    "focal_cotangents": lambda c: (c.storage + 12,) * 2,  # what focal_weights read is in a cache if it fits
    "soft_argmax": lambda c: (c.storage,) * 2,
    "soft_argmax_backward": lambda c: (c.storage,) * 2,  # the window alone is read
    "edge_sum": lambda c: (3 * c.storage,) * 2,  # what several edges need, once from memory
    "edge_backward": lambda c: (5 * c.storage,) * 2,
    "gram_units": lambda c: (2 * c.storage, 2 * c.storage),
    "gram_chunks": lambda c: (2 * c.storage, 2 * c.storage),
    "project_units": lambda c: (3 * c.storage, 3 * c.storage),
    "project_chunks": lambda c: (3 * c.storage, 3 * c.storage),
    "adamw_units": lambda c: (4 * c.storage + 2 * c.states * c.moments,) * 2,
    "adamw_chunks": lambda c: (4 * c.storage + 2 * c.states * c.moments,) * 2,
    "sgd_units": lambda c: (4 * c.storage + 2 * c.moments,) * 2,
    "sgd_chunks": lambda c: (4 * c.storage + 2 * c.moments,) * 2,
    "attention": lambda c: (4 * c.storage,) * 2,
    # two cotangents; statistics, and partial sums of 17 rows of prefix for each 64 rows, are written and read
    "attention_backward": lambda c: (11 * c.storage + 9, 11 * c.storage),
    "add_layer_norm": lambda c: (4 * c.storage,) * 2,
    "layer_norm_backward": lambda c: (7 * c.storage,) * 2,
    "gelu": lambda c: (2 * c.storage,) * 2,
    "gelu_backward": lambda c: (5 * c.storage,) * 2,
    "affine_shift": lambda c: (3 * c.storage,) * 2,
    "affine_shift_backward": lambda c: (3 * c.storage,) * 2,
    "gate_shift_means": lambda c: (c.storage,) * 2,
    # the neighbouring frame is read again, from a cache where the programs of a channel run together
    "gate_shift_fuse": lambda c: (3 * c.storage, 2 * c.storage),
    "gate_shift_slopes": lambda c: (3 * c.storage, 2 * c.storage),
    "gate_shift_fuse_backward": lambda c: (4 * c.storage, 3 * c.storage),
}


# ---- compiling in the place of launching


class _NoDevice:
    """Stands for Triton's driver where there is no GPU: it names the target, and nothing can be launched."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch  # Triton keeps what it compiled by this number

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiling(arch: int, found: Callable[[str, Any], None]) -> Iterator[None]:
    """Within, a launch compiles the kernel for sm_`arch` and hands it to `found` instead of running it."""
    original = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        found(self.__name__, original(self, *args, grid=grid, warmup=True, **kwargs))

    driver.set_active(_NoDevice(arch))  # it stays: Triton finds no other one without a GPU
    JITFunction.run = compile_only
    try:
        yield
    finally:
        JITFunction.run = original


def compile_case(case: str, arch: int) -> list[Row]:
    """Rows of all kernels that a case launches."""
    rows: dict[str, Row] = {}

    def found(name: str, kernel: Any) -> None:
        rows.setdefault(name, measure(name, case, arch, kernel))

    with compiling(arch, found):
        CASES[case].launch()
    return list(rows.values())


def measure(name: str, case: str, arch: int, kernel: Any) -> Row:
    """Read registers and the instructions of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        resources = gates.resources(_tool("cuobjdump", "-res-usage", file.name))
        sass = _tool("nvdisasm", "-c", file.name)
    shared, threads = kernel.metadata.shared, 32 * kernel.metadata.num_warps
    moved, least = BYTES[name](CASES[case]) if name in BYTES else ("-", "-")
    return Row(
        kernel=f"{name}, {case}",
        arch=f"sm_{arch}",
        registers=resources["REG"],
        stack=resources["STACK"],
        shared=str(shared),
        bytes_per_element=f"{moved}/{least}",
        threads=threads,
        occupancy=gates.occupancy(resources["REG"], shared, threads, arch),
        **gates.instructions(sass),
    )


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([find_tool(name), *arguments], capture_output=True, text=True, check=True).stdout


# ---- judging


def judge(rows: list[Row], limits: Limits) -> list[str]:
    """The faults of the rows, one line each."""
    return gates.judge(rows, limits, LIMITS)


def compile_all() -> tuple[list[Row], list[str]]:
    """Rows of all cases on all architectures, and one line for each case that failed or took too long."""
    rows: list[Row] = []
    faults: list[str] = []
    fork = multiprocessing.get_context("fork")
    waiting = [(case, arch) for arch in reversed(ARCHITECTURES) for case in reversed(CASES)]
    running: dict[Any, tuple[Any, str]] = {}
    while waiting or running:
        while waiting and len(running) < len(os.sched_getaffinity(0)):
            case, arch = waiting.pop()
            receiver, sender = fork.Pipe(duplex=False)
            process = fork.Process(target=_compile_in_process, args=(sender, case, arch))
            process.start()
            sender.close()  # so that the end of the process ends the pipe
            running[receiver] = process, f"{case} sm_{arch}"
        for receiver in wait(list(running)):
            process, name = running.pop(receiver)
            try:
                compiled, fault = receiver.recv()
            except EOFError:
                compiled, fault = [], None
            process.join()
            if process.exitcode:
                too_long = process.exitcode == -signal.SIGXCPU
                fault = _too_long() if too_long else f"the compiler ended with status {process.exitcode}"
            rows += compiled
            faults += [f"{name}: {fault}"] if fault else []
    return rows, faults


def _too_long() -> str:
    return f"compiling took over {SECONDS} s of a processor"


def _compile_in_process(sender: Any, case: str, arch: int) -> None:
    """Send the rows of a case, or what went wrong. The system ends a process that computes for too long.

    Time on a clock would depend on what else the machine does.
    """
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, resource.RLIM_INFINITY))
    rows: list[Row] = []
    fault = None
    try:
        rows = compile_case(case, arch)
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
    # the assembler is a process of its own
    used = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    sender.send((rows, _too_long() if used > SECONDS else fault))


def main() -> int:
    """Compile, judge, print."""
    return gates.run_gate(__doc__.splitlines()[0], compile_all, judge, LIMITS)


if __name__ == "__main__":
    raise SystemExit(main())
