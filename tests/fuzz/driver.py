"""Runs random cases in processes of their own, goes on behind a crash, and tells which case found what.

A worker process runs one case after the other and notes in a file which one it is at. When it dies, or stays at one
case for too long, that case is a finding, and a new worker goes on with the next.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from tests.fuzz.registry import TARGETS, load_targets

PATIENCE = 60.0  # seconds for one case, and for the start of a worker
MEMORY = 12 * 2**30  # bytes of addresses that a worker may take
_REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Finding:
    """A case that went wrong.

    Attributes:
        name: the target.
        seed: of the whole run.
        index: of the case.
        what: the exception, or how the process ended.
    """

    name: str
    seed: int
    index: int
    what: str

    def __str__(self) -> str:
        """With the command that runs the case again."""
        again = f'python -m tests.fuzz --seed {self.seed} --case {self.index} "{self.name}"'
        return f"{self.name}, case {self.index}: {self.what.strip()}\n    again: {again}"


@dataclass
class Result:
    """What a target's cases gave."""

    name: str
    cases: int = 0
    seconds: float = 0.0
    findings: tuple[Finding, ...] = ()


def run_case(name: str, seed: int, index: int) -> None:
    """Run one case in this process; raises what it raises."""
    with TemporaryDirectory(prefix="prograd-fuzz-") as folder:
        TARGETS[name](Random(f"{seed} {name} {index}"), Path(folder))


def run_target(name: str, seed: int, seconds: float, most_cases: int, most_findings: int = 20) -> Result:
    """Run cases of one target until the time or the number is up, or too many went wrong.

    Args:
        name: the target.
        seed: decides all cases.
        seconds: for how long to begin new ones.
        most_cases: how many.
        most_findings: after how many findings to give up.

    Returns:
        The number of cases and the findings.
    """
    result, end = Result(name), time.monotonic() + seconds
    started = time.monotonic()
    while result.cases < most_cases and time.monotonic() < end and len(result.findings) < most_findings:
        count = most_cases - result.cases
        done, findings = _run_worker(name, seed, result.cases, count, end - time.monotonic())
        result.cases += done
        result.findings += tuple(findings)
    result.seconds = time.monotonic() - started
    return result


def _run_worker(name: str, seed: int, first: int, count: int, seconds: float) -> tuple[int, list[Finding]]:
    """How many cases one worker got through, and what it found."""
    with TemporaryDirectory(prefix="prograd-fuzz-worker-") as folder:
        notes, errors = Path(folder) / "notes", Path(folder) / "stderr"
        notes.touch()
        command = [
            sys.executable,
            "-m",
            "tests.fuzz",
            "--worker",
            str(notes),
            "--seed",
            str(seed),
            "--case",
            str(first),
        ]
        command += ["--cases", str(count), "--seconds", str(seconds), name]
        with errors.open("wb") as stderr:
            process = subprocess.Popen(command, cwd=_REPOSITORY, stdout=stderr, stderr=stderr)
            hung = _wait(process, notes)
        events = list(_events(notes))
        findings = [Finding(name, seed, e["case"], e["finding"]) for e in events if "finding" in e]
        begun = [e["case"] for e in events if "finding" not in e]
        if process.returncode:
            tail = errors.read_text(errors="replace")[-2000:]
            if not begun:
                raise RuntimeError(f"the worker for {name!r} did not begin (exit code {process.returncode}):\n{tail}")
            how = f"no end after {PATIENCE:.0f} s" if hung else f"the process ended with {process.returncode}"
            findings.append(Finding(name, seed, begun[-1], f"{how}\n{tail}"))
        return len(begun), findings


def _wait(process: "subprocess.Popen[bytes]", notes: Path) -> bool:
    """Wait for a worker; True if it had to be killed because it stayed at one case."""
    size, since = -1, time.monotonic()
    while True:
        try:
            process.wait(timeout=0.1)
            return False
        except subprocess.TimeoutExpired:
            now = notes.stat().st_size
            if now != size:
                size, since = now, time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                process.kill()
                process.wait()
                return True


def _events(notes: Path) -> Iterator[dict[str, object]]:
    for line in notes.read_text(errors="replace").splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # cut off where the process died
            continue


def work(name: str, seed: int, first: int, count: int, seconds: float, notes: Path) -> None:
    """What a worker process does: run cases, and note each before it begins and whatever it raised."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    tempfile.tempdir = str(notes.parent)  # what a killed case leaves goes with the worker's folder
    end = time.monotonic() + seconds
    with notes.open("a", buffering=1) as file:
        for index in range(first, first + count):
            if time.monotonic() > end and index > first:
                return
            file.write(json.dumps({"case": index}) + "\n")
            try:
                run_case(name, seed, index)
            except BaseException:  # SystemExit and KeyboardInterrupt too
                file.write(json.dumps({"case": index, "finding": traceback.format_exc(limit=-6)}) + "\n")


def run(names: list[str], seed: int, seconds: float, most_cases: int) -> list[Result]:
    """Run targets one after the other, each with its share of the time, and print a line for each.

    Args:
        names: the targets; none for all.
        seed: decides all cases.
        seconds: for all targets together.
        most_cases: of each.
    """
    load_targets()
    names = names or sorted(TARGETS)
    results, end = [], time.monotonic() + seconds
    for i, name in enumerate(names):
        share = (end - time.monotonic()) / (len(names) - i)  # what one leaves over, the next ones have
        result = run_target(name, seed, share, most_cases)
        print(f"{name}: {result.cases} cases in {result.seconds:.0f} s, {len(result.findings)} findings", flush=True)
        for finding in result.findings:
            print(finding, flush=True)
        results.append(result)
    return results
