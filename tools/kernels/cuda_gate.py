"""Judge the machine code of every CUDA kernel in the installed extension, without a GPU.

nvcc compiled the sources for each architecture when the project was installed. Registers, stack, shared memory and the
width of every global access are read from the module that ships. A kernel fails when it spills, when an operand has
lost its 16-byte access, or when it needs more registers or makes more narrow accesses than `cuda_limits.json` records
(narrow are the ends of rows and tensors, labels, weights and sums).

    python tools/kernels/cuda_gate.py                      judge; print the table
    python tools/kernels/cuda_gate.py --record             write the limits from what comes out now
    python tools/kernels/cuda_gate.py --json cuda.json     also write the rows, for table.py
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import gates  # beside this file
from gates import ARCHITECTURES, RESERVED, Limits, Row, find_tool

from prograd_fast.backends.extension import EXTENSION

LIMITS = Path(__file__).with_name("cuda_limits.json")
DTYPES = {"double": "fp64", "float": "fp32", "__nv_bfloat16": "bf16", "__half": "fp16"}
# 16-byte loads and stores at least, one for each operand of the source; sample_log_probs has none, where a thread has
# one class, nor has what adds up the rows of the dual loss
WIDE = {
    "gram": (2, 0),
    "project": (2, 1),
    "adamw": (6, 4),
    "sgd": (4, 2),
    "dual_loss": (2, 2),
    "dual_loss_sums": (2, 0),
    "dual_loss_cotangents": (2, 2),
    "dual_loss_batch": (0, 0),
    "sample_sums": (1, 0),
    "sample_cotangents": (1, 1),
    "sample_log_probs": (0, 0),
    "squared_error": (2, 1),
    "soft_wing": (2, 1),
    "structure_loss": (0, 0),  # a thread has a coordinate, and its neighbours'
    "focal_weights": (2, 0),  # and labels
    "focal_cotangents": (2, 1),
    "soft_argmax": (1, 0),
    "soft_argmax_backward": (0, 1),  # of the maps it reads a window
    "edge_shares": (0, 0),
    "edge_sum": (1, 1),
    "edge_backward": (3, 2),
    "edge_logits": (0, 0),
    "attention": (3, 1),
    # keys and values twice for a query; then for a key of a segment and for one of the prefix, and its partial sums
    "attention_backward": (15, 5),
    "attention_tiles": (3, 1),  # queries, keys, values
    # the tiles twice, cotangents twice; then keys, values, queries and cotangents, and the partial sums of the prefix
    "attention_backward_tiles": (15, 5),
    "add_layer_norm": (4, 2),
    "layer_norm_backward": (5, 1),
    "gelu": (1, 1),
    "gelu_backward": (2, 1),
    # what moves, as packs where they stay whole; the bias, or what the sums are multiplied with
    "affine_shift": (2, 1),
    "affine_shift_backward": (2, 1),
    # a map and its gate; the neighbouring frame's, and the gradient
    "gate_shift_means": (2, 0),
    "gate_shift_fuse": (2, 1),
    "gate_shift_slopes": (5, 0),
    "gate_shift_fuse_backward": (4, 2),
}
# the most instructions in loops for each element, over all loops of a kernel
BUDGET = {"dual_loss": 60, "dual_loss_sums": 35}
ODD = "1 at a time"  # the dual loss where the tensors are aligned in different ways: a class at a time, no wide access
ODD_BUDGET = {"dual_loss": 90, "dual_loss_sums": 60}
# by what a kernel is instantiated for
RULES = {
    "StoreProjected": "project",
    "AdamWRule": "adamw",
    "SGDRule": "sgd",
    "SquaredError": "squared_error",
    "SoftWing": "soft_wing",
}
OF_256 = ("dual_loss", "sample", "squared", "soft", "focal", "attention", "gelu", "affine", "gate")  # threads
SIZES = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2}
# what the numbers say that a kernel is instantiated for, after the dtype
NUMBERS = {
    "gram": ("{} tensors",),
    "dual_loss": ("{} at a time", "T=1 {}"),
    "dual_loss_sums": ("{} at a time",),
    "dual_loss_cotangents": ("{} at a time",),
    "structure_loss": ("shared {}",),
    "focal_weights": ("exponent {}",),
    "focal_cotangents": ("exponent {}",),
    "attention": ("{} lanes",),
    "attention_backward": ("{} lanes", "K={}"),
    "attention_tiles": ("heads of {}",),
    "attention_backward_tiles": ("heads of {}",),
}


# ---- reading


def run(*command: str | Path, folder: Path | None = None) -> str:
    """The output of a command, run in `folder`; it must succeed."""
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=folder)
    if result.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}")
    return result.stdout


def cubins(extension: Path, folder: Path) -> list[tuple[Path, int]]:
    """Writes the machine code of a compiled module to files in `folder`; each with its architecture."""
    run(find_tool("cuobjdump"), "-xelf", "all", extension, folder=folder)
    return [(path, int(path.stem.rsplit("sm_", 1)[1])) for path in sorted(folder.glob("*.cubin"))]


def read_kernels(cubin: Path, arch: int) -> list[Row]:
    """Rows of all kernels of a file of machine code."""
    usage = run(find_tool("cuobjdump"), "-res-usage", cubin)
    sass = run(find_tool("nvdisasm"), "-c", cubin)
    bodies = dict(re.findall(r"\.text\.(\S+):\n(.*?)(?=\n\.text\.|\Z)", sass, re.S))
    functions = re.findall(r"Function (\S+):\s*\n\s*(REG:.*)", usage)
    if not functions or not all(name in bodies for name, _ in functions):
        raise RuntimeError(f"{cubin.name}: no kernels found in what cuobjdump and nvdisasm print")
    return [measure(name, resources, bodies[name], arch) for name, resources in functions]


# ---- measuring


def measure(mangled: str, usage: str, sass: str, arch: int) -> Row:
    """Read one kernel's resources and instructions."""
    resources = gates.resources(usage)
    kernel, dtype = readable(run("c++filt", mangled))
    threads = threads_of(kernel, dtype)
    # from sm_90 on cuobjdump counts what is reserved
    declared = max(0, resources["SHARED"] - (RESERVED if arch >= 90 else 0))
    dynamic = asked_shared(kernel, dtype)
    counts = gates.instructions(sass)
    elements = elements_of_iteration(kernel)
    return Row(
        kernel=kernel,
        arch=f"sm_{arch}",
        registers=resources["REG"],
        stack=resources["STACK"],
        shared=f"{declared} + {dynamic}",  # asked for at the launch
        bytes_per_element=traffic(kernel),
        threads=threads,
        occupancy=gates.occupancy(resources["REG"], declared + dynamic, threads, arch),
        per_element=counts["loop_instructions"] / elements if elements else None,
        **counts,
    )


def readable(name: str) -> tuple[str, str]:
    """A demangled name as "gram fp32", "adamw bf16, moments fp32" or "attention_backward fp32, 8 lanes, K=2".

    K: cotangents. The second result is the storage dtype.
    """
    match = re.search(r"(\w+)_kernel<(\w+)((?:, [^()]*)?)>\(", name)
    if match is None:
        raise ValueError(f"no kernel of csrc/cuda: {name}")
    kernel, storage, others = match.groups()
    rule = re.search(r"prograd::(?:cuda::)?(\w+)<(\w+)(?:, (\w+))?>", others)
    notes = []
    if rule is not None:
        kernel = RULES.get(rule[1], kernel)
        if tensors := re.search(r">, (\d+)$", others):  # that a launch takes
            notes = [f"{tensors[1]} tensors"]
        if rule[3] and rule[3] != storage:
            notes.append(f"moments {DTYPES[rule[3]]}")
    else:
        numbers = re.findall(r"\w+", others)
        words = NUMBERS.get(kernel, ("{}",) * len(numbers))
        given = zip(words, numbers, strict=True)
        notes = [word.format(number).removesuffix(" true") for word, number in given if number != "false"]
    return ", ".join([f"{kernel} {DTYPES[storage]}", *notes]), DTYPES[storage]


def least_mma(kernel: str) -> int:
    """Instructions of the tensor cores at least: two products of 16 x 16 for 16 columns of each matrix of a step.

    The forward has scores and results; the backward has these for the queries' gradients, then scores, dO v and dq; for
    the keys' it has scores, dO v, dk and dv.
    """
    matrices = {"attention_tiles": 2, "attention_backward_tiles": 9}.get(kernel.split()[0], 0)
    return matrices * 2 * int(kernel.rsplit(" ", 1)[1]) // 16 if matrices else 0


def elements_of_iteration(kernel: str) -> int | None:
    """Elements that a thread handles in an iteration of each loop; None where loops differ or nobody has counted."""
    width = re.search(r"(\d+) at a time", kernel)
    return int(width[1]) if width and not kernel.startswith("dual_loss_cotangents") else None


def threads_of(kernel: str, dtype: str) -> int:
    """Of the largest block: kThreads, kTileThreads, kNormWarps and the others of 256. Dual loss: for 1000 classes."""
    name = kernel.split()[0]
    if name == "dual_loss":
        pieces = 1000 // (elements_of_iteration(kernel) or 1)
        return min((pieces // 2 + 32) // 32 * 32, 1024 if dtype == "fp32" else 512)
    if name == "dual_loss_batch":
        return 1024 if dtype == "fp32" else 512
    if name.startswith(("structure", "edge")) or "layer_norm" in kernel or "tiles" in kernel:
        return 128
    return 256 if name.startswith(OF_256) else 512


def asked_shared(kernel: str, dtype: str) -> int:
    """Bytes that a launch asks for.

    Both gradients of a chunk of 8192 in one launch; both rows of 1000 classes, or 4096 of a longer row; four rows of
    512 features, or twice as many in the backward; two numbers for each coordinate of 98 landmarks; two tiles of keys
    and values and a row for each query of a block, and in the backward at least 16 keys and values and two times 16
    queries and cotangents for each warp; a pack of sums for each thread.
    """
    if "tiles" in kernel:
        columns = int(kernel.rsplit(" ", 1)[1])
        rows = 2 * 2 * (64 if columns > 64 else 80) + 64
        return (max(rows, 4 * 6 * 16) if "backward" in kernel else rows) * (columns + 8) * 2
    if kernel.startswith(("project", "adamw", "sgd")):
        return 2 * 8192 * SIZES[dtype]
    if "layer_norm" in kernel:
        return (2 if "backward" in kernel else 1) * 4 * 512 * SIZES[dtype]
    if kernel.startswith("gate_shift_fuse_backward"):
        return 256 * (16 // SIZES[dtype]) * max(SIZES[dtype], 4)
    if "shared" in kernel:
        return 2 * 2 * 98 * max(SIZES[dtype], 4)
    classes = {"dual_loss": 1000, "dual_loss_sums": 4096}.get(kernel.split()[0], 0)
    if ODD in kernel:
        return 2 * classes * max(SIZES[dtype], 4)
    return 2 * (classes * SIZES[dtype] + 32) if classes else 0


def traffic(kernel: str) -> str:
    """Bytes of global memory for each element: what the kernel moves, over the least the operator can do with.

    A projection or an update in one launch reads both gradients once, in two launches (more than 4 Mi elements) twice.
    A row of logits is read once where it fits into shared memory; in parts it is read twice. Norm and GELU are counted
    with two cotangents; attention by column of a row, as if a key that several queries see came from memory once (its
    backward goes over it twice), without the prefix, the sums of each softmax and the partial sums. Sums along edges by
    feature, as if one that several edges need came from memory once. A neighbouring frame counts where a kernel of
    gate, shift and fuse reads it again; the gate and the numbers of a channel do not.
    """
    name, dtype = kernel.split(",")[0].split()
    size = SIZES[dtype]
    accumulation = max(size, 4)  # of cotangents
    moments = SIZES[kernel.rsplit(" ", 1)[1]] if "moments" in kernel else size
    match name:
        case "gram":
            return f"{2 * size} / {2 * size}"
        case "project" | "adamw" | "sgd":
            least = {"project": 3 * size, "adamw": 4 * size + 4 * moments, "sgd": 4 * size + 2 * moments}[name]
            return f"{least} / {least}; two launches {least + 2 * size} / {least}"
        case "dual_loss":
            return f"{2 * size + 2 * accumulation} / {2 * size + 2 * accumulation}"
        case "dual_loss_sums":
            return f"{2 * size}; both launches {4 * size + 2 * accumulation} / {2 * size + 2 * accumulation}"
        case "dual_loss_cotangents":
            return f"{2 * size + 2 * accumulation}"
        case "squared_error" | "soft_wing":
            return f"{2 * size + accumulation} / {2 * size + accumulation}"
        case "structure_loss":
            return f"{2 * size + 2 * accumulation} / {2 * size + 2 * accumulation}"
        case "focal_weights":
            both = f"{2 * size + 16 + accumulation} / {size + 8 + accumulation}"
            return f"{size + 8}; both launches {both}"
        case "focal_cotangents":
            return f"{size + 8 + accumulation}"
        case "soft_argmax" | "soft_argmax_backward":
            return f"{size} / {size}"
        case "edge_sum":
            return f"{3 * size} / {3 * size}"
        case "edge_backward":
            return f"{5 * size} / {5 * size}"
        case "edge_shares" | "edge_logits":
            return "bound by launches"
        case "sample_sums" | "sample_log_probs":
            return f"{size} / {size}"
        case "sample_cotangents":
            return f"{size + accumulation} / {size + accumulation}"
        case "gelu":
            return f"{2 * size} / {2 * size}"
        case "gelu_backward":
            return f"{5 * size} / {5 * size}"
        case "affine_shift" | "affine_shift_backward":
            return f"{3 * size} / {3 * size}"
        case "gate_shift_means":
            return f"{size} / {size}"
        case "gate_shift_fuse":
            return f"{2 * size} / {2 * size}"
        case "gate_shift_slopes":
            return f"{3 * size} / {2 * size}"
        case "gate_shift_fuse_backward":
            return f"{4 * size} / {3 * size}"
        case "add_layer_norm":
            return f"{4 * size} / {4 * size}"
        case "layer_norm_backward":
            return f"{7 * size} / {7 * size}"
        case "attention" | "attention_tiles":
            return f"{4 * size} / {4 * size}"
        case "attention_backward":
            k = int(kernel.rsplit("=", 1)[1])
            return f"{(6 + 5 * k) * size} / {(3 + 4 * k) * size}"
    return "bound by arithmetic"


# ---- judging


def judge(rows: list[Row], limits: Limits) -> list[str]:
    """The faults of the rows, one line each."""
    faults = []
    for row in rows:
        name, odd = row.kernel.split()[0], ODD in row.kernel
        if name not in WIDE:
            faults.append(f"{row.key}: say in {Path(__file__).name} how many accesses of 16 bytes it has")
            continue
        loads, stores = (0, 0) if odd else WIDE[name]
        if row.wide_loads < loads or row.wide_stores < stores:
            got = f"{row.wide_loads} loads and {row.wide_stores} stores of 16 bytes"
            faults.append(f"{row.key}: {got}, expected at least {loads} and {stores}")
        if row.mma < least_mma(row.kernel):
            faults.append(f"{row.key}: {row.mma} instructions of the tensor cores, at least {least_mma(row.kernel)}")
        budget = (ODD_BUDGET if odd else BUDGET).get(name)
        # in double an exponential is a polynomial
        if budget and " fp64" not in row.kernel and (row.per_element is None or row.per_element > budget):
            faults.append(f"{row.key}: {row.per_element} instructions in loops an element, at most {budget}")
    return faults + gates.judge(rows, limits, LIMITS)


def read_all() -> tuple[list[Row], list[str]]:
    """Rows of all kernels on all architectures, and one line for each architecture that is missing."""
    with tempfile.TemporaryDirectory() as folder:
        found = cubins(Path(EXTENSION.__file__), Path(folder))
        rows = [row for cubin, arch in found for row in read_kernels(cubin, arch)]
    missing = sorted({*ARCHITECTURES} - {arch for _, arch in found})
    return rows, [f"the installed extension has no kernels for sm_{arch}" for arch in missing]


def main() -> int:
    """Read, judge, print."""
    if not hasattr(EXTENSION, "register_cuda"):
        print("SKIPPED: the extension was built without CUDA (prograd-fast doctor says why)", file=sys.stderr)
        return 0
    return gates.run_gate(__doc__.splitlines()[0], read_all, judge, LIMITS)


if __name__ == "__main__":
    raise SystemExit(main())
