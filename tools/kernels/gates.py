"""Shared by the two gates: reading the machine code of a kernel, its limits, and the command line."""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from table import markdown  # beside this file

ARCHITECTURES = (80, 90, 100)
SHARED_OF_SM = {80: 164, 90: 228, 100: 228}  # KB
RESERVED = 1024  # bytes of shared memory that every block takes besides
REGISTER_SLACK = 8  # above what was recorded: compilers differ a little, and registers come in steps of 8
WIDTHS = {"128": 128, "64": 64, "U16": 16, "S16": 16, "16": 16, "U8": 8, "S8": 8}  # bits, by a word of the instruction

Limits = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Row:
    """One kernel, compiled for one architecture. The fields are the columns of the table."""

    kernel: str  # and what it was compiled for
    arch: str
    registers: int
    spills: int  # local loads and stores in the SASS
    stack: int  # bytes
    shared: str  # bytes
    wide_loads: int  # global, of 16 bytes
    wide_stores: int
    narrow: int  # global accesses of less than 16 bytes
    bytes_per_element: str  # moved between chip and memory, over the least possible
    threads: int  # of a block
    occupancy: float  # threads resident at most, over those of a full SM
    loop_instructions: int = 0  # in all loops together, each counted once
    loop_special: int = 0  # of these, special functions: exponentials, reciprocals, roots
    per_element: float | None = None  # loop instructions over the elements of an iteration, where that is known
    mma: int = 0  # instructions of the tensor cores

    @property
    def key(self) -> str:
        """The name of this row in the limits."""
        return f"{self.kernel} {self.arch}"


# ---- reading


def find_tool(name: str) -> str:
    """Path of cuobjdump or nvdisasm: of the Triton wheel, or on the PATH.

    Raises:
        FileNotFoundError: neither is there.
    """
    spec = find_spec("triton")
    if spec is not None and spec.origin is not None:
        tool = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name
        if tool.exists():
            return str(tool)
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name}: not on the PATH and not in a Triton wheel. Run: pip install triton")
    return found


def resources(usage: str) -> dict[str, int]:
    """REG, STACK and SHARED of a kernel, from the output of cuobjdump -res-usage."""
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED):(\d+)", usage)}


def instructions(sass: str) -> dict[str, int]:
    """Counts of spills, global accesses and instructions in loops, named as in `Row`, from the output of nvdisasm."""
    loads, stores = _widths("LDG(?:STS)?", sass), _widths("STG", sass)
    looping = in_loops(sass)
    return {
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "wide_loads": loads.count(128),
        "wide_stores": stores.count(128),
        "narrow": sum(bits < 128 for bits in loads + stores),
        "loop_instructions": len(looping),
        "loop_special": sum(_opcode(instruction) == "MUFU" for instruction in looping),
        "mma": len(re.findall(r"\*/\s+(?:@!?U?P\w+\s+)?\w*MMA\b", sass)),  # HMMA, HGMMA, UTCHMMA
    }


def in_loops(sass: str) -> list[str]:
    """The instructions from which the control flow can come back to themselves.

    Every one counts once, whatever the path: also what is for rare cases. A loop that the compiler has unrolled, and
    the rest of it, count each. So this is an upper bound of what an iteration executes, as long as loops do not nest.
    """
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L_\S+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            instructions.append(instruction[1])
    following = [_following(i, text, labels, len(instructions)) for i, text in enumerate(instructions)]
    return [instructions[i] for i in sorted(_on_cycles(following))]


def _opcode(instruction: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", instruction).split(None, 1)[0].split(".")[0]


def _following(i: int, instruction: str, labels: dict[str, int], count: int) -> list[int]:
    """Where the control flow may go from an instruction."""
    opcode = _opcode(instruction)
    always = not instruction.startswith("@")
    targets = []
    if opcode in ("BRA", "CALL", "WARPSYNC"):
        targets = [labels[label] for label in re.findall(r"`\((\.L_[^\s)]+)\)", instruction) if label in labels]
    # "BRA P0, ..." and "BRA.DIV UR4, ..." also go on
    ends = opcode in ("EXIT", "RET") or (opcode == "BRA" and re.search(r"BRA\S*\s+`", instruction) is not None)
    if not (ends and always):
        targets.append(i + 1)
    return [target for target in targets if target < count]


def _on_cycles(following: list[list[int]]) -> set[int]:
    """The nodes of a graph that node 0 leads to and that lie on a cycle.

    Tarjan's strongly connected components, without recursion.
    """
    number: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    open_nodes: set[int] = set()
    cyclic: set[int] = set()
    path = [(0, iter(following[0]))] if following else []
    while path:
        node, others = path[-1]
        if node not in number:
            number[node] = low[node] = len(number)
            stack.append(node)
            open_nodes.add(node)
        for other in others:
            if other not in number:
                path.append((other, iter(following[other])))
                break
            if other in open_nodes:
                low[node] = min(low[node], low[other])
        else:
            path.pop()
            if path:
                low[path[-1][0]] = min(low[path[-1][0]], low[node])
            if low[node] == number[node]:
                component = stack[stack.index(node) :]
                del stack[-len(component) :]
                open_nodes.difference_update(component)
                if len(component) > 1 or node in following[node]:
                    cyclic.update(component)
    return cyclic


def _widths(opcode: str, sass: str) -> list[int]:
    """Bits of each access: LDG.E.128, .64, .U16, .U8, and 32 where nothing is said."""
    return [
        next((WIDTHS[word] for word in modifiers.split(".") if word in WIDTHS), 32)
        for modifiers in re.findall(rf"\b{opcode}(\.\S*|\b)", sass)
    ]


def occupancy(registers: int, shared: int, threads: int, arch: int) -> float:
    """From the CUDA programming guide: 65 536 registers and 2048 threads an SM, shared memory by architecture."""
    blocks = min(65536 // (-(-registers // 8) * 8 * threads), 2048 // threads, 32)
    blocks = min(blocks, SHARED_OF_SM[arch] * 1024 // (shared + RESERVED))
    return blocks * threads / 2048


# ---- judging


def judge(rows: Sequence[Row], limits: Limits, file: Path) -> list[str]:
    """The faults of the rows, one line each; the limits were read from `file`."""
    faults = []
    for row in rows:
        if row.spills or row.stack:
            faults.append(f"{row.key}: spills: {row.spills} local accesses, {row.stack} bytes of stack")
        limit = limits.get(row.key)
        if limit is None:
            faults.append(f"{row.key}: not in {file.name}; run with --record, and look at what it records")
            continue
        if row.registers > limit["registers"]:
            faults.append(f"{row.key}: {row.registers} registers, at most {limit['registers']} were recorded")
        if row.narrow > limit["narrow"]:
            faults.append(f"{row.key}: {row.narrow} narrow global accesses, at most {limit['narrow']} were recorded")
    compiled = {row.key for row in rows}
    return faults + [f"{key}: recorded in {file.name}, but no longer compiled" for key in limits if key not in compiled]


def record(rows: Sequence[Row], file: Path) -> None:
    """Write what comes out now as the limits."""
    limits = {row.key: {"registers": row.registers + REGISTER_SLACK, "narrow": row.narrow} for row in rows}
    lines = (f" {json.dumps(key)}: {json.dumps(limit)}" for key, limit in sorted(limits.items()))
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def run_gate(
    description: str,
    compile_all: Callable[[], tuple[list[Row], list[str]]],
    judge_rows: Callable[[list[Row], Limits], list[str]],
    file: Path,
) -> int:
    """The command of a gate: compile, print the table, judge.

    Args:
        description: for --help.
        compile_all: gives the rows of all kernels, and what did not compile.
        judge_rows: gives what is wrong with them.
        file: of the limits.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--record", action="store_true", help=f"write {file.name} from what comes out now")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    rows, faults = compile_all()
    if arguments.record and not faults:
        record(rows, file)
    table = [asdict(row) for row in rows]
    print(markdown(table))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")
    # kernels after one that did not compile would count as gone
    faults = faults or judge_rows(rows, json.loads(file.read_text()) if file.exists() else {})
    for fault in faults:
        print(f"FAILED  {fault}", file=sys.stderr)
    return 1 if faults else 0
