"""Ways to run the command, for all tests that do."""

import subprocess
import sys
from pathlib import Path

import pytest

from prograd_fast import cli
from tests.paths import REPOSITORY


def run(*arguments: str | Path, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "prograd_fast", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def run_here(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """The command in this process, which is quicker; its exit code."""
    monkeypatch.setattr(sys, "argv", ["prograd-fast", *map(str, arguments)])
    return cli.run(sys.argv[1:])


def fail(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> str:
    """The line with which a command in this process ends; there is only one, and the exit code is 2."""
    assert run_here(monkeypatch, *arguments) == 2
    said = capfd.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("prograd-fast: ")]
    assert len(lines) == 1, said.err
    assert "Traceback" not in said.err
    return lines[0]


def stopped_run(monkeypatch: pytest.MonkeyPatch, out: Path, arguments: list) -> None:
    """A run that vanishes after some steps, and leaves a checkpoint."""
    from prograd_fast.training import loop
    from prograd_fast.training.checkpoint import Checkpoints

    step, taken = loop.update, []

    def vanish(*args):
        taken.append(1)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "due", True)
        patch.setattr(loop, "update", vanish)
        assert run_here(patch, "train", *arguments, "--out", out) == 130
    assert [file.name for file in out.iterdir()] == ["checkpoint.safetensors"]
