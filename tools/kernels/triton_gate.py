"""Compile every Triton kernel for real GPUs, without one, and judge what comes out.

The launchers of `prograd_fast.backends.triton_kernels` run on small CPU tensors with Triton's launch replaced by a
compilation for the target, so that types, constants and alignment are the ones that production has. Registers and SASS
come from the tools in the Triton wheel. A kernel fails when it spills, when it needs more registers or makes more
narrow (below 16 bytes) global accesses than `triton_limits.json` records, or when compiling takes over a minute.

    python tools/kernels/triton_gate.py             judge; print the table
    python tools/kernels/triton_gate.py --record    write the limits from what comes out now
"""

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from prograd_fast.backends.triton_kernels.adamw import project_adamw_
from prograd_fast.backends.triton_kernels.dual_loss import dual_loss_out
from prograd_fast.backends.triton_kernels.linear_dual_loss import linear_dual_loss_out
from prograd_fast.backends.triton_kernels.projection import gram_out, project_
from prograd_fast.backends.triton_kernels.sgd import project_sgd_

ARCHITECTURES = (80, 90, 100)
LIMITS = Path(__file__).with_name("triton_limits.json")
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SECONDS = 60  # for one kernel
REGISTER_SLACK = 8  # above what was recorded: compilers differ a little, and registers come in steps of 8


@dataclass(frozen=True)
class Row:
    """What one kernel became on one architecture."""

    kernel: str
    case: str
    arch: int
    warps: int
    registers: int
    spills: int  # local loads and stores in the SASS
    stack: int  # bytes
    shared: int  # bytes
    load_bits: int  # the widest global load
    store_bits: int
    narrow: int  # global accesses below 128 bits
    occupancy: float  # threads resident at most, over those of a full SM
    seconds: float

    @property
    def key(self) -> str:
        """Its name in the limits."""
        return f"{self.kernel} {self.case} sm_{self.arch}"


# ---- what is compiled: the launchers, over dtypes and sizes that choose every kernel


def _losses(n_rows: int, n_columns: int, dtype: torch.dtype, **change: Any) -> None:
    accumulation = torch.promote_types(dtype, torch.float32)
    dual_loss_out(
        *torch.zeros(2, n_rows, n_columns, dtype=dtype), torch.zeros(n_rows, dtype=torch.int64),
        change.get("offset"), change.get("weight"), change.get("weight"), 2.0, False, 1,
        losses=torch.empty(2, dtype=accumulation), cotangents=torch.empty(2, n_rows, n_columns, dtype=dtype),
        correct=torch.empty((), dtype=torch.int64),
    )  # fmt: skip


def _linear(n_rows: int, n_columns: int, n_features: int, dtype: torch.dtype) -> None:
    linear_dual_loss_out(
        torch.zeros(n_rows, n_features, dtype=dtype), *torch.zeros(2, n_columns, n_features, dtype=dtype),
        torch.zeros(n_rows, dtype=torch.int64), None, None, None, 100.0, 2.0, False, 1,
        losses=torch.empty(2, dtype=torch.promote_types(dtype, torch.float32)),
        cotangents=torch.empty(2, n_columns, n_features, dtype=dtype), correct=torch.empty((), dtype=torch.int64),
    )  # fmt: skip


def _lists(size: int, n: int, dtype: torch.dtype) -> list[list[Tensor]]:
    return [[torch.zeros(size, dtype=dtype)] for _ in range(n)]


def _gram(size: int, dtype: torch.dtype) -> None:
    gram_out(*_lists(size, 2, dtype), 0, entries=torch.empty(1, 3))


def _project(size: int, dtype: torch.dtype) -> None:
    project_(*_lists(size, 2, dtype), torch.zeros(1, 2), 0)


def _adamw(size: int, dtype: torch.dtype, moments: torch.dtype, amsgrad: bool = False, scaled: bool = False) -> None:
    factor = torch.ones(()) if scaled else None
    coefficients = torch.zeros(1, 2) if scaled else None  # both optional inputs in the same variant
    project_adamw_(
        *_lists(size, 3, dtype), *_lists(size, 3, moments), [torch.zeros(())], torch.empty(1, 3), coefficients, factor,
        1e-3, 0.9, 0.999, 1e-8, 1e-2, 1.0, 0, amsgrad, False, factor, factor,
    )  # fmt: skip


def _sgd(size: int, dtype: torch.dtype, buffers: bool) -> None:
    project_sgd_(
        *_lists(size, 3, dtype), [torch.zeros(size, dtype=dtype)] if buffers else [], torch.empty(1, 3), None, None,
        1e-3, 0.9, 0.0, 1e-2, 1.0, 0, False, False, False, None, None,
    )  # fmt: skip


def _steps(size: int, dtype: torch.dtype) -> None:
    _gram(size, dtype)
    _project(size, dtype)
    _adamw(size, dtype, dtype)
    _sgd(size, dtype, True)


F32, BF16 = torch.float32, torch.bfloat16
SMALL, LARGE = 8192, 1 << 17  # a context of 16 x 512; two launches

CASES: dict[str, Callable[[], None]] = {
    "1000 classes, fp32": lambda: _losses(2, 1000, F32),
    "1000 classes, bf16": lambda: _losses(2, 1000, BF16),
    "1000 classes, fp32, weights and offset": lambda: _losses(
        2, 1000, F32, weight=torch.zeros(2), offset=torch.zeros(1000)
    ),
    "8192 classes, fp32": lambda: _losses(2, 8192, F32),
    "8192 classes, bf16": lambda: _losses(2, 8192, BF16),
    "21840 classes, fp32": lambda: _losses(2, 21840, F32),
    "21840 classes, bf16": lambda: _losses(2, 21840, BF16),
    "21841 classes, fp32, rows not aligned": lambda: _losses(2, 21841, F32),
    "linear, 512 features, fp32": lambda: _linear(64, 1000, 512, F32),
    "linear, 512 features, bf16": lambda: _linear(64, 1000, 512, BF16),
    "one launch, fp32": lambda: _steps(SMALL, F32),
    "one launch, bf16": lambda: _steps(SMALL, BF16),
    "two launches, fp32": lambda: _steps(LARGE, F32),
    "two launches, bf16": lambda: _steps(LARGE, BF16),
    "two launches, bf16 with fp32 moments": lambda: _adamw(LARGE, BF16, F32),
    "two launches, fp32, amsgrad, rule, GradScaler": lambda: _adamw(LARGE, F32, F32, amsgrad=True, scaled=True),
}


# ---- compiling in the place of launching


@contextmanager
def compiling(arch: int, found: Callable[[str, Any, float], None]) -> Iterator[None]:
    """Within, a launch compiles the kernel for sm_`arch` and hands it to `found` instead of running it."""
    target = GPUTarget("cuda", arch, 32)
    backend = make_backend(target)

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        bound, specialization, options = create_function_from_signature(self.signature, self.params, backend)(
            *args, **kwargs
        )
        packed, signature, constants, attributes = self._pack_args(backend, kwargs, bound, specialization, options)
        begin = time.monotonic()
        source = ASTSource(self, signature, constants, attributes)
        kernel = triton.compile(source, target=target, options=packed.__dict__)
        found(self.__name__, kernel, time.monotonic() - begin)

    original = JITFunction.run
    JITFunction.run = compile_only
    try:
        yield
    finally:
        JITFunction.run = original


def compile_case(case: str, arch: int) -> list[Row]:
    """Rows of all kernels that a case launches."""
    rows: dict[str, Row] = {}

    def found(name: str, kernel: Any, seconds: float) -> None:
        rows.setdefault(name, measure(name, case, arch, kernel, seconds))

    with compiling(arch, found):
        CASES[case]()
    return list(rows.values())


def measure(name: str, case: str, arch: int, kernel: Any, seconds: float) -> Row:
    """Read registers and the instructions of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        sass = _tool("nvdisasm", "-c", file.name)
    registers = int(_number(r"REG:(\d+)", usage))
    shared = kernel.metadata.shared
    warps = kernel.metadata.num_warps
    loads, stores = _widths(r"\bLDG(?:STS)?\.(\S*)", sass), _widths(r"\bSTG\.(\S*)", sass)
    return Row(
        kernel=name,
        case=case,
        arch=arch,
        warps=warps,
        registers=registers,
        spills=len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        stack=int(_number(r"STACK:(\d+)", usage)),
        shared=shared,
        load_bits=max(loads, default=0),
        store_bits=max(stores, default=0),
        narrow=sum(bits < 128 for bits in loads + stores),
        occupancy=_occupancy(registers, shared, warps, arch),
        seconds=round(seconds, 1),
    )


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


def _number(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"no {pattern} in the output of cuobjdump:\n{text}")
    return match[1]


def _widths(pattern: str, sass: str) -> list[int]:
    """Bits of each access: LDG.E.128, .64, .U16, .U8, and 32 where nothing is said."""
    sizes = {"128": 128, "64": 64, "U16": 16, "S16": 16, "16": 16, "U8": 8, "S8": 8}
    return [
        next((sizes[word] for word in modifiers.split(".") if word in sizes), 32)
        for modifiers in re.findall(pattern, sass)
    ]


def _occupancy(registers: int, shared: int, warps: int, arch: int) -> float:
    """From the CUDA programming guide: 65 536 registers and 64 warps an SM, shared memory by architecture."""
    per_block = -(-registers // 8) * 8 * 32 * warps
    blocks = min(65536 // per_block, 64 // warps, 32)
    if shared:
        blocks = min(blocks, (164 if arch == 80 else 228) * 1024 // (shared + 1024))
    return round(blocks * warps / 64, 2)


# ---- judging


def judge(rows: list[Row], limits: dict[str, dict[str, int]]) -> list[str]:
    """What is wrong, one line each."""
    faults = []
    for row in rows:
        if row.spills or row.stack:
            faults.append(f"{row.key}: spills: {row.spills} local accesses, {row.stack} bytes of stack")
        limit = limits.get(row.key)
        if limit is None:
            faults.append(f"{row.key}: not in {LIMITS.name}; run with --record, and look at what it records")
            continue
        if row.registers > limit["registers"]:
            faults.append(f"{row.key}: {row.registers} registers, at most {limit['registers']} were recorded")
        if row.narrow > limit["narrow"]:
            faults.append(f"{row.key}: {row.narrow} narrow global accesses, at most {limit['narrow']} were recorded")
    faults += [
        f"{key}: recorded in {LIMITS.name}, but no longer compiled" for key in limits.keys() - {r.key for r in rows}
    ]
    return faults


def compile_all() -> tuple[list[Row], list[str]]:
    """Rows of all cases on all architectures, and the cases that failed or took too long."""
    rows, faults = [], []
    n_processes = len(os.sched_getaffinity(0))
    with multiprocessing.Pool(n_processes) as pool:
        waiting = {
            (case, arch): pool.apply_async(compile_case, (case, arch)) for arch in ARCHITECTURES for case in CASES
        }
        for (case, arch), result in waiting.items():
            try:
                rows += result.get(timeout=SECONDS)
            except multiprocessing.TimeoutError:
                faults.append(f"{case} sm_{arch}: not compiled within {SECONDS} s")
                pool.terminate()
                break
            except Exception as error:
                faults.append(f"{case} sm_{arch}: {error}")
    return rows, faults


def main() -> int:
    """Compile, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help=f"write {LIMITS.name} from what comes out now")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    begin = time.monotonic()
    rows, faults = compile_all()
    if arguments.record and not faults:
        recorded = {row.key: {"registers": row.registers + REGISTER_SLACK, "narrow": row.narrow} for row in rows}
        LIMITS.write_text(json.dumps(dict(sorted(recorded.items())), indent=1) + "\n")
    limits = json.loads(LIMITS.read_text()) if LIMITS.exists() else {}
    faults += judge(rows, limits)
    for row in rows:
        print(
            f"{row.kernel:<18} {row.case:<46} sm_{row.arch:<4} {row.warps:>2} warps {row.registers:>4} registers "
            f"{row.spills} spills {row.shared:>6} B shared  {row.load_bits:>3}/{row.store_bits:>3} bit  "
            f"{row.narrow:>3} narrow  occupancy {row.occupancy:.2f}  {row.seconds} s"
        )
    print(f"{len(rows)} kernels in {time.monotonic() - begin:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    for fault in faults:
        print(f"FAILED  {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
