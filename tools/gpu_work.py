"""The file of `tools.gpu_check`, and what one of its parts is given: cases to run, figures and failures to note."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NOT_DONE = 3  # the exit status of a process that has to be started again


class MissingError(Exception):
    """A part that cannot run here: the reason."""


# ---- the file


def read(out: Path) -> dict[str, Any]:
    """What is known so far."""
    return json.loads(out.read_text()) if out.exists() else {"parts": {}}


def write(out: Path, report: dict[str, Any]) -> None:
    """In one step: who reads sees all of it, or what was there before."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f"{out.name}.{os.getpid()}")
    temporary.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(temporary, out)


# ---- one part


class Work:
    """What a part is given: cases to run, figures to note.

    Args:
        out: the file.
        name: of the part.
        seconds: after which no further case begins.
        fake: on a CPU.

    Attributes:
        device: whose tensors the cases take.
    """

    def __init__(self, out: Path, name: str, seconds: float, fake: bool) -> None:
        self.fake, self.device = fake, "cpu" if fake else "cuda"
        self._out, self._name, self._start, self._seconds = out, name, time.monotonic(), seconds
        self.record = read(out)["parts"].get(name) or fresh()
        self._before: float = self.record["seconds"]

    @property
    def left(self) -> float:
        """Seconds until no further case begins."""
        return self._seconds - (time.monotonic() - self._start)

    def case(self, name: str, run: Callable[[], Any]) -> None:
        """Run a case, unless it is done or time is up. What it returns is a figure; what it raises is a failure."""
        if name in self.record["done"]:
            return
        if self.left <= 0:
            self.record["status"] = "out of time"
            return
        self.record["running"] = name
        self.save()
        try:
            figure = run()
            if figure is not None:
                self.record["figures"][name] = figure
        except Exception as error:
            self.fail(name, f"{type(error).__name__}: {error}")
            if "CUDA error" in str(error):  # nothing works in this process any more
                raise SystemExit(NOT_DONE) from error
        self.finish_case(name)

    def finish_case(self, name: str) -> None:
        """Never to be run again."""
        self.record["done"].append(name)
        self.record["running"] = None
        self.save()

    def fail(self, case: str, what: str) -> None:
        """Note a failure; the rest goes on."""
        self.record["failures"].append({"case": case, "what": what.strip()[:2000]})

    def save(self) -> None:
        """Into the file, beside what other parts have written."""
        self.record["seconds"] = round(self._before + time.monotonic() - self._start, 2)
        report = read(self._out)
        report["parts"][self._name] = self.record
        write(self._out, report)

    def end(self, skipped: str | None = None) -> None:
        """Note how it ended."""
        if skipped is not None:
            self.record |= {"status": "skipped", "reason": skipped}
        elif self.record["status"] != "out of time":
            self.record["status"] = "failed" if self.record["failures"] else "passed"
        self.save()


def fresh() -> dict[str, Any]:
    """A part of which nothing is known."""
    return {"status": "begun", "seconds": 0.0, "figures": {}, "failures": [], "done": [], "running": None}
