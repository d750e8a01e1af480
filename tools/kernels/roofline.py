"""What an H100 could do at most with each operator, from what the operator must do: a model, not measured.

    python tools/kernels/roofline.py build/cuda.json                 print the tables
    python tools/kernels/roofline.py build/cuda.json --write         put them into docs/kernels.md

The work is written down here, by hand and by operator: bytes, operations of matrix products, launches, blocks.
Registers and occupancy come from the machine code, as `cuda_gate.py --json` has read it; so do instructions and calls
of special functions for each element, where the gate counts them.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from table import markdown  # beside this file

PAGE = Path(__file__).parents[2] / "docs" / "kernels.md"
BEGIN, END = "<!-- tools/kernels/roofline.py writes from here -->", "<!-- to here -->"
ARCH = "sm_90"

# NVIDIA's data sheet of the H100 SXM: memory; tensor cores without sparsity; on each of 132 multiprocessors at
# 1.755 GHz four warp instructions a cycle, and 64 bytes a cycle from the L2 cache
BANDWIDTH = 3.35e12
OF_ONE = 64 * 1.755e9
TENSOR = {"bf16": 989e12, "fp32": 67e12}  # float32 products stay outside of the tensor cores, as PyTorch's default is
MULTIPROCESSORS = 132
ISSUED = 4 * MULTIPROCESSORS * 1.755e9
LAUNCH = 2e-6  # seconds from one small kernel to the next in a stream: an assumption
SIZES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class Work:
    """What a call of an operator does.

    Attributes:
        size: of the call, for the table.
        dtype: "fp32" or "bf16".
        least: bytes that must move between chip and memory.
        moved: bytes that do.
        launches: kernels.
        blocks: of the largest launch; None where a library chooses.
        elements: that its instructions are counted for.
        operations: of matrix products.
        kernel: its name in the gate's rows; none for a library's product.
    """

    size: str
    dtype: str
    least: float
    moved: float
    launches: int
    blocks: int | None
    elements: int = 0
    operations: float = 0.0
    kernel: str = ""


@dataclass(frozen=True)
class Family:
    """A table of the page.

    Attributes:
        works: its rows.
        best: the best figure that somebody published for such a kernel, with the source; empty where there is none.
    """

    works: Sequence[Work]
    best: str = ""


# ---- the work


def dual_loss() -> list[Work]:
    """Both matrices of logits are read once, both cotangents written once: in float32 for 16-bit logits too.

    The least is that of cotangents in the dtype of the logits. A second launch adds up the rows.
    """
    return [
        Work(
            f"{b} × {c}",
            dtype,
            4 * s * b * c,
            (2 * s + 8) * b * c,
            2,
            b,
            b * c,
            0,
            f"dual_loss {dtype}, {16 // s} at a time",
        )
        for b, c in ((32, 1000), (256, 1000), (1024, 21841))
        for dtype, s in SIZES.items()
    ]


CHUNK_BYTES = 64 << 20  # of float32 logits: `prograd_fast.backends.chunked_products`


def linear_dual_loss() -> list[Work]:
    """Library products in chunks: two matrices of logits, the loss, both cotangents of the classes at once.

    The loss takes two launches. A chunk's logits are written and read once in float32, its cotangents in the storage
    dtype; with several chunks the cotangents of the classes are read and written again by each.
    """
    works = []
    for b, c, d in ((32, 1000, 512), (1024, 100, 512), (1024, 21841, 512)):
        for dtype, s in SIZES.items():
            chunks = math.ceil(b / max(1, CHUNK_BYTES // (4 * c)))
            least = s * d * (b + 2 * c) + 8 * c * d
            moved = least + 2 * b * c * 2 * (4 + s) + (chunks - 1) * (16 * c * d + 2 * s * c * d)
            works.append(Work(f"{b} × {c} × {d}", dtype, least, moved, 5 * chunks, None, operations=8.0 * b * c * d))
    return works


PREFIX, WIDTH, HEADS, HIDDEN, COTANGENTS = 17, 512, 8, 2048, 2
ROWS_OF_A_CLASS = 4.2  # after the prefix, on average over ImageNet's names


def attention() -> list[Work]:
    """Queries, keys and values are read once, the result is written; the backward of two cotangents alike.

    Each row sees the prefix and on average half of its own segment: two products forward, five for each cotangent. The
    backward is a launch that goes over queries, then over keys; 16-bit storage has kernels of its own, with tensor
    cores.
    """
    kernels = {
        "forward": {"fp32": "attention fp32", "bf16": "attention_tiles bf16"},
        "backward": {"fp32": "attention_backward fp32", "bf16": "attention_backward_tiles bf16"},
    }
    works = []
    for classes in (100, 1000):
        rows = int(ROWS_OF_A_CLASS * classes)
        pairs = rows * (PREFIX + (ROWS_OF_A_CLASS + 1) / 2)
        blocks = HEADS * math.ceil(rows / 64)
        for dtype, s in SIZES.items():
            for name, values, products in (("forward", 4, 2), ("backward", 3 + 4 * COTANGENTS, 5 * COTANGENTS)):
                moved = values * s * WIDTH * (rows + PREFIX)
                work = Work(f"C = {classes}, {name}", dtype, moved, moved, 1, blocks)
                works.append(replace(work, operations=products * 2 * pairs * WIDTH, kernel=kernels[name][dtype]))
    return works


CHUNK, TENSORS_OF_A_LAUNCH, ONE_LAUNCH = 8192, 400, 1 << 22  # csrc/cuda/tensor_lists.cuh and projection.cuh


def updates() -> list[Work]:
    """Parameter and both moments are read and written, both gradients read: 32 bytes in float32.

    Above 4 Mi elements with tensors of several chunks, two launches read the gradients; tickets are then cleared.
    """
    works = []
    lists = {"16 × 512": (1, 8192), "200 × 8192": (200, 8192), "400 × 2048": (400, 2048)}
    for size, (tensors, each) in (lists | {"10⁶": (1, 10**6), "10⁸": (1, 10**8)}).items():
        elements, chunks = tensors * each, tensors * math.ceil(each / CHUNK)
        twice = each > CHUNK and elements > ONE_LAUNCH
        launches = (3 if twice else 1) * math.ceil(tensors / TENSORS_OF_A_LAUNCH)
        for dtype, s in SIZES.items():
            least, moved = (n * s * elements for n in (8, 10 if twice else 8))
            works.append(Work(size, dtype, least, moved, launches, chunks, elements, kernel=f"adamw {dtype}"))
    return works


def norm_and_gelu() -> list[Work]:
    """Rows of 1000 classes; backward of two cotangents, in place."""
    rows, works = int(ROWS_OF_A_CLASS * 1000), []
    for dtype, s in SIZES.items():
        for kernel, values, width, per_block in (
            ("add_layer_norm", 4, WIDTH, 4 * WIDTH), ("layer_norm_backward", 1 + 3 * COTANGENTS, WIDTH, 4 * WIDTH),
            ("gelu", 2, HIDDEN, 256 * 16 // s), ("gelu_backward", 1 + 2 * COTANGENTS, HIDDEN, 256 * 16 // s),
        ):  # fmt: skip
            elements = rows * width
            blocks = math.ceil(elements / per_block)
            moved = values * s * elements
            works.append(
                Work(
                    f"{kernel}, {rows} × {width}", dtype, moved, moved, 1, blocks, elements, kernel=f"{kernel} {dtype}"
                )
            )
    return works


FAMILIES: dict[str, Callable[[], Family]] = {
    "dual_loss": lambda: Family(
        dual_loss(),
        "a softmax, one matrix in and one out, reaches 3.01 TB/s, 89.7 % of the peak, on an H100 with float32 rows of "
        "131,072: [quack](https://github.com/Dao-AILab/quack/blob/main/media/2025-07-10-membound-sol.md), which gives "
        "about 2.0 TB/s for torch.compile there. Nobody has published a loss with two gradients.",
    ),
    "linear_dual_loss": lambda: Family(linear_dual_loss()),
    "attention": lambda: Family(
        attention(),
        "FlashAttention-3 reaches 430 TFLOP/s forward on an H100 with the shortest sequences that were published, 512 "
        "rows of 16 heads of 128: [pytorch/benchmark#2391](https://github.com/pytorch/benchmark/pull/2391). A prompt "
        "has about four rows behind a prefix of 17, for which there is no figure.",
    ),
    "updates (AdamW)": lambda: Family(updates()),
    "layer_norm, gelu": lambda: Family(norm_and_gelu()),
}


# ---- the model


def seconds(work: Work, row: dict[str, Any] | None) -> tuple[float, str]:
    """The least time of a call, and what sets it.

    Memory, products and instructions go on at the same time. Fewer blocks than multiprocessors have a part of each.
    """
    used = MULTIPROCESSORS if work.blocks is None else min(work.blocks, MULTIPROCESSORS)
    share = used / MULTIPROCESSORS
    parts = {
        "memory": work.moved / min(BANDWIDTH, used * OF_ONE),
        "products": work.operations / TENSOR[work.dtype] / share,
    }
    instructions, _ = per_element(row)
    if instructions is not None:
        parts["instructions"] = work.elements * instructions / 32 / ISSUED / share
    parts["launches"] = work.launches * LAUNCH
    bound = max(parts, key=lambda name: parts[name])
    return parts[bound], bound


def per_element(row: dict[str, Any] | None) -> tuple[float | None, float | None]:
    """Instructions and special functions for each element, of loops whose elements the gate knows."""
    if row is None or not row.get("per_element"):
        return None, None
    elements = row["loop_instructions"] / row["per_element"]  # of an iteration
    return row["per_element"], row["loop_special"] / elements


def row_of(rows: Sequence[dict[str, Any]], kernel: str) -> dict[str, Any] | None:
    """The gate's row of a kernel; if there are only some with further notes in the name, that with most registers."""
    here = [row for row in rows if row["arch"] == ARCH and kernel]
    found = [row for row in here if row["kernel"] == kernel]
    found = found or [row for row in here if row["kernel"].startswith(f"{kernel},")]
    return max(found, key=lambda row: row["registers"], default=None)


def table_row(work: Work, rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """One line of a table; a dash is what the gate does not know, or a library decides."""
    row = row_of(rows, work.kernel)
    time, bound = seconds(work, row)

    instructions, special = per_element(row)

    def known(value: Any, form: str = "") -> str:
        return "–" if value is None else format(value, form)

    return {
        "size": work.size,
        "dtype": work.dtype,
        "bytes, least": _bytes(work.least),
        "bytes, moved": _bytes(work.moved),
        "operations": f"{work.operations / 1e9:.3g} G" if work.operations else "–",
        "instructions an element": known(instructions, ".0f"),
        "special functions": known(special, ".1f"),
        "registers": known(row and row["registers"]),
        "occupancy": known(row and row["occupancy"], ".2f"),
        "blocks": "–" if work.blocks is None else str(work.blocks),
        "launches": str(work.launches),
        "model, not measured": f"{_short(1e6 * time)} µs, {bound}",
    }


def _bytes(count: float) -> str:
    return f"{_short(count / 1e6)} MB"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def page(rows: Sequence[dict[str, Any]]) -> str:
    """All tables, in Markdown."""
    parts = []
    for name, made in FAMILIES.items():
        family = made()
        best = f"\n\nBest public kernel: {family.best}" if family.best else ""
        parts.append(f"### `{name}`\n{markdown([table_row(work, rows) for work in family.works])}{best}")
    return "\n\n".join(parts)


def written(text: str, tables: str) -> str:
    """A page with the tables between its two marks."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


def main() -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="the JSON file of cuda_gate.py")
    parser.add_argument("--write", action="store_true", help="into docs/kernels.md")
    arguments = parser.parse_args()
    tables = page(json.loads(arguments.rows.read_text()))
    if arguments.write:
        PAGE.write_text(written(PAGE.read_text(), tables))
    else:
        print(tables)


if __name__ == "__main__":
    main()
