"""Everything that only a GPU can tell, in parts that fit a borrowed machine; one JSON file with what was found.

    python -m tools.gpu_check --out gpu.json            the parts that are not done yet, for at most 8 minutes
    python -m tools.gpu_check --out gpu.json            the same again, until it exits with 0 or 1
    python -m tools.gpu_check --out gpu.json --part NAME --again
    python -m tools.gpu_check --list
    python -m tools.gpu_check --out try.json --fake     on a CPU, whose kernels stand in: shows that the script runs

Run from the repository's root. Each part is a process of its own: a kernel that crashes takes down its case alone. The
file is written after every case, and a later call goes on after the last one.

Exit status: 0 all parts passed, 1 some failed, 3 not all are done: call again.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tools.gpu_work import NOT_DONE, MissingError, Work, fresh, read, write

FAKE = "cpu, not a GPU"
SECONDS = 480  # of one call
STARTING = 30  # seconds that a process may take until its first case, or to end after its last
FINISHED = ("passed", "failed", "skipped")


# ---- the machine


def machine(fake: bool) -> dict[str, Any]:
    """The facts that the figures depend on."""
    facts: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    try:
        facts["triton"] = version("triton")
    except PackageNotFoundError:
        facts["triton"] = None
    if fake:
        return {"device": FAKE, "driver": None, **facts}
    return {"device": torch.cuda.get_device_name(), "driver": _driver(), **facts}


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=STARTING).stdout.split("\n")[0] or None
    except (OSError, subprocess.TimeoutExpired):
        return None


# ---- one part


def run_part(out: Path, name: str, function: Callable[[Work], None], seconds: float, fake: bool) -> None:
    """Run a part in this process."""
    work = Work(out, name, seconds, fake)
    work.record["status"] = "begun"
    try:
        function(work)
    except MissingError as reason:
        work.end(skipped=str(reason))
    except SystemExit:
        work.finish_case(work.record["running"])
        raise
    except Exception as error:
        work.fail(name, f"{type(error).__name__}: {error}")
        work.end()
    else:
        work.end()


# ---- all of them


def run_in_process(out: Path, name: str, seconds: float, fake: bool) -> None:
    """Run a part in processes of its own, as many as its crashes need."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        command = [sys.executable, "-m", "tools.gpu_check", "--out", str(out), "--part", name, "--seconds", str(left)]
        try:
            status = subprocess.run(
                [*command, "--inside", *(["--fake"] if fake else [])], timeout=left + STARTING
            ).returncode
            ended = f"the process ended with status {status}"
        except subprocess.TimeoutExpired:
            status, ended = -1, f"still running {STARTING} s after its time"
        if status == 0:
            return
        work = Work(out, name, 0, fake)
        case = work.record["running"]
        if case is not None:
            work.fail(case, ended)
            work.finish_case(case)
        elif status != NOT_DONE:
            work.fail(name, f"{ended} outside of its cases")
            return work.end()
    work = Work(out, name, 0, fake)
    work.record["status"] = "out of time"
    work.end()


def run_all(out: Path, limits: dict[str, float], seconds: float, fake: bool, again: bool) -> int:
    """Run the parts that are not finished and still fit; return the exit status."""
    deadline = time.monotonic() + seconds
    report = read(out)
    if report.get("device", machine(fake)["device"]) != machine(fake)["device"]:
        raise SystemExit(f"{out}: was written on {report['device']}. Name another file.")
    report |= machine(fake)
    if again:
        report["parts"] = {name: part for name, part in report["parts"].items() if name not in limits}
    write(out, report)
    for name, limit in limits.items():
        if read(out)["parts"].get(name, fresh())["status"] in FINISHED:
            continue
        left = deadline - time.monotonic() - STARTING
        if min(limit, left) < min(limit, STARTING):
            break
        print(f"{name}: at most {min(limit, left):.0f} s", flush=True)
        run_in_process(out, name, min(limit, left), fake)
        print(f"{name}: {summary(read(out)['parts'][name])}", flush=True)
    found = [read(out)["parts"].get(name, fresh())["status"] for name in limits]
    if any(status not in FINISHED for status in found):
        return NOT_DONE
    return int("failed" in found)


def summary(part: dict[str, Any]) -> str:
    """One part, in a line for each thing that failed."""
    head = f"{part['status']}, {len(part['done'])} cases, {part['seconds']:.0f} s {part.get('reason', '')}".rstrip()
    return "\n".join([head, *(f"  {failure['case']}: {failure['what']}" for failure in part["failures"])])


def main() -> int:
    """Run what the command line asks for."""
    from tools.gpu_parts import PARTS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the JSON file")
    parser.add_argument("--part", choices=PARTS, help="this one alone")
    parser.add_argument("--list", action="store_true", help="print the parts")
    parser.add_argument("--again", action="store_true", help="also what is finished")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of this call (default: {SECONDS})")
    parser.add_argument("--fake", action="store_true", help="on a CPU")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # a part's own process
    asked = parser.parse_args()
    if asked.list:
        for name, part in PARTS.items():
            print(f"{name:20} {part.seconds:4} s  {(part.run.__doc__ or '').splitlines()[0]}")
        return 0
    if asked.out is None:
        parser.error("--out: expected a file")
    if not asked.fake and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here. Use --fake to try the script on a CPU.")
    if asked.inside:
        run_part(asked.out, asked.part, PARTS[asked.part].run, asked.seconds, asked.fake)
        return 0
    limits = {name: float(part.seconds) for name, part in PARTS.items() if asked.part in (None, name)}
    return run_all(asked.out, limits, asked.seconds, asked.fake, asked.again)


if __name__ == "__main__":
    raise SystemExit(main())
