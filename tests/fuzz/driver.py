"""Runs random cases in a process of their own, goes on behind a crash, and tells which case found what.

A worker process runs one case after the other and notes in a file which one it is at. When it dies, or stays at one
case for too long, that case is a finding, and a new worker goes on with the next.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from tests.fuzz.registry import TARGETS, WEIGHTS
from tests.paths import REPOSITORY

PATIENCE = 60.0  # seconds for one case, and for the start of a worker
LEAST = 20  # cases of a target of weight 1, however little time there is
MEMORY = 12 * 2**30  # bytes of addresses that a worker may take


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
    """The outcome of a target's cases."""

    name: str
    cases: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    done: bool = False


def run_case(name: str, seed: int, index: int) -> None:
    """Run one case in this process; raises what it raises."""
    with TemporaryDirectory(prefix="prograd-fuzz-") as folder:
        TARGETS[name](Random(f"{seed} {name} {index}"), Path(folder))


def run(names: Sequence[str], seed: int, seconds: float, most_cases: int, most_findings: int = 20) -> list[Result]:
    """Run random cases of targets, each with its share of the time.

    Args:
        names: the targets.
        seed: decides all cases.
        seconds: for all targets together; each has its least number of cases, and a case is not cut short.
        most_cases: of each target.
        most_findings: of each target, after which it is left.
    """
    results = [Result(name) for name in names]
    left = list(results)
    end = time.monotonic() + seconds
    while left:
        _run_worker(left, seed, max(0.0, end - time.monotonic()), most_cases)
        left = left[next((i for i, result in enumerate(left) if not result.done), len(left)) :]
        while left and (len(left[0].findings) >= most_findings or time.monotonic() > end):
            left.pop(0)
    return results


def _run_worker(results: list[Result], seed: int, seconds: float, most_cases: int) -> None:
    """Run the cases of targets that are left in one process, until it is done or dies, and note what came out."""
    by_name = {result.name: result for result in results}
    with TemporaryDirectory(prefix="prograd-fuzz-worker-") as folder:
        notes, errors = Path(folder) / "notes", Path(folder) / "stderr"
        notes.touch()
        plan = json.dumps([[result.name, result.cases] for result in results])
        command = [sys.executable, "-m", "tests.fuzz", "--worker", str(notes), "--plan", plan, "--seed", str(seed)]
        command += ["--cases", str(most_cases), "--seconds", str(seconds)]
        with errors.open("wb") as stderr:
            offline = os.environ | {"HF_HUB_OFFLINE": "1"}  # names that are tried by chance are looked up nowhere
            process = subprocess.Popen(command, cwd=REPOSITORY, stdout=stderr, stderr=stderr, env=offline)
            hung = _wait(process, notes)
        last, at = None, 0.0
        for event in _events(notes):
            result = by_name[event["name"]]
            if "done" in event:
                result.done = True
                result.seconds += event["done"]
            elif "finding" in event:
                result.findings.append(Finding(result.name, seed, event["case"], event["finding"]))
            else:
                last, at, result.cases = result, event["at"], event["case"] + 1
        if process.returncode:
            tail = errors.read_text(errors="replace")[-2000:]
            if last is None:
                raise RuntimeError(f"the worker did not begin (exit code {process.returncode}):\n{tail}")
            last.seconds += at
            how = f"no end after {PATIENCE:.0f} s" if hung else f"the process ended with {process.returncode}"
            last.findings.append(Finding(last.name, seed, last.cases - 1, f"{how}\n{tail}"))


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


def _events(notes: Path) -> Iterator[dict[str, Any]]:
    for line in notes.read_text(errors="replace").splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # cut off where the process died
            continue


def work(plan: Sequence[tuple[str, int]], seed: int, seconds: float, most_cases: int, notes: Path) -> None:
    """The work of a worker process: run cases, and note each before it begins and whatever it raised.

    Args:
        plan: the targets, and the first case of each.
        seed: decides all cases.
        seconds: for all of them.
        most_cases: of each target.
        notes: the file to note in.
    """
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    tempfile.tempdir = str(notes.parent)  # what a killed case leaves goes with the worker's folder
    end = time.monotonic() + seconds
    with notes.open("a", buffering=1) as file:

        def note(**event: object) -> None:
            file.write(json.dumps(event) + "\n")

        for position, (name, first) in enumerate(plan):
            started = time.monotonic()
            weights = [WEIGHTS[name] for name, _ in plan[position:]]
            until = started + (end - started) * weights[0] / sum(weights)  # what one leaves over, the next ones have
            for index in range(first, most_cases):
                if index >= LEAST * WEIGHTS[name] and time.monotonic() > until:
                    break
                note(name=name, case=index, at=time.monotonic() - started)
                try:
                    run_case(name, seed, index)
                except BaseException:  # SystemExit and KeyboardInterrupt too
                    note(name=name, case=index, finding=traceback.format_exc(limit=-6))
            note(name=name, done=time.monotonic() - started)


def report(results: Sequence[Result]) -> bool:
    """Print a line for each target, and its findings; whether there are any."""
    for result in results:
        print(f"{result.name}: {result.cases} cases in {result.seconds:.0f} s, {len(result.findings)} findings")
        for finding in result.findings:
            print(finding)
    cases, findings = sum(r.cases for r in results), sum(len(r.findings) for r in results)
    print(f"{cases} cases, {findings} findings")
    return findings > 0
