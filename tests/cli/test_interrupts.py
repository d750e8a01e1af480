"""Ctrl-C, SIGTERM and closed streams: one line whenever they come, nothing lost, and the numbers of an unbroken run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prograd_fast.terminal.interrupts import Held, end_in_one_line
from prograd_fast.training import loop
from prograd_fast.training.checkpoint import Checkpoints
from tests.cli.support import run_here
from tests.paths import REPOSITORY
from tests.processes import forked_command

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}


def started(*arguments: str | Path) -> "subprocess.Popen[str]":
    """The command in a new process, as soon as its handler is there: what comes before is Python's own start."""

    def as_in_a_terminal() -> None:  # a test in the background may have inherited an ignored SIGINT
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(
        [sys.executable, "-m", "prograd_fast", *map(str, arguments)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_in_a_terminal,
    )
    wait_for(lambda: caught(process.pid) >> (signal.SIGTERM - 1) & 1)
    return process


def caught(pid: int) -> int:
    """The signals that a process has a handler for, as bits."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("SigCgt")).split()[1], 16)


def wait_for(condition) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


def interrupted_line(code: int, said: str, number: signal.Signals) -> str:
    """The one line after which an interrupted process ends."""
    assert code == SIGNALS[number], said
    assert said.startswith("prograd-fast: interrupted"), said
    assert len(said.splitlines()) == 1, said
    return said


def same_runs(*folders: Path) -> bool:
    records = [json.loads((folder / "record.json").read_text()) for folder in folders]
    for record in records:
        del record["created"], record["seconds"]
    return records[0] == records[1]


@pytest.fixture
def arguments(shapes_dir, clip_dir) -> list:
    options = ["--data", shapes_dir, "--shots", 2, "--epochs", 150, "--lr", 0.001, "--no-cache"]
    return ["train", *options, "--model", f"local-dir:{clip_dir}"]


@pytest.mark.parametrize(("number", "delay"), [(signal.SIGINT, 0), (signal.SIGTERM, 1)])
def test_one_line_while_the_command_starts(arguments, tmp_path, number, delay):
    process = started(*arguments, "--out", tmp_path / "run")
    time.sleep(delay)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    interrupted_line(process.returncode, said, number)


@pytest.mark.parametrize(("number", "delay"), [(signal.SIGTERM, 0.1), (signal.SIGINT, 1)])
def test_one_line_while_the_command_works(arguments, tmp_path, number, delay):
    process = forked_command(*arguments, "--epochs", 100_000, "--out", tmp_path / "run")
    wait_for(lambda: caught(process.pid) >> (signal.SIGTERM - 1) & 1)
    time.sleep(delay)
    process.send_signal(number)
    code, _, said = process.end()
    interrupted_line(code, said, number)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_what_was_trained_is_kept(arguments, tmp_path, monkeypatch, number):
    out, log = tmp_path / "run", tmp_path / "log"
    process = forked_command(*arguments, "--out", out, "--log", log)
    wait_for(lambda: log.is_dir() and any(log.iterdir()))  # the first steps are done
    process.send_signal(number)
    process.send_signal(number)  # somebody impatient
    code, _, said = process.end()
    assert f"--resume goes on from {out / 'checkpoint.safetensors'}" in interrupted_line(code, said, number)
    assert [file.name for file in out.iterdir()] == ["checkpoint.safetensors"]
    assert run_here(monkeypatch, *arguments, "--out", out, "--resume") == 0
    assert run_here(monkeypatch, *arguments, "--out", tmp_path / "whole") == 0
    assert same_runs(out, tmp_path / "whole")


@pytest.mark.parametrize(
    ("step", "options"),
    [
        (1, []),
        (7, []),  # in an epoch
        (16, []),  # the last
        (7, ["--views", 0]),
        (7, ["--patience", 1, "--set", "batch_size=4"]),
    ],
    ids=str,
)
def test_a_step_is_never_cut(arguments, tmp_path, monkeypatch, step, options):
    options = [*arguments, "--set", "batch_size=2", "--epochs", 4, *options]
    assert run_here(monkeypatch, *options, "--out", tmp_path / "whole") == 0
    update, taken = loop.update, []

    def interrupted(*given):
        taken.append(1)
        if len(taken) == step:
            os.kill(os.getpid(), signal.SIGINT)
        return update(*given)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "update", interrupted)
        code = run_here(patch, *options, "--out", tmp_path / "run")
    steps = len(json.loads((tmp_path / "whole" / "record.json").read_text())["steps"]["task_loss"])
    if step > steps:  # stopped early
        assert code == 0
        return
    assert code == 130
    assert run_here(monkeypatch, *options, "--out", tmp_path / "run", "--resume") == 0
    assert same_runs(tmp_path / "run", tmp_path / "whole")


def test_a_second_signal_while_the_state_is_saved(arguments, tmp_path, monkeypatch):
    save = Checkpoints.save

    def slowly(self, state) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        save(self, state)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "due", True)
        patch.setattr(Checkpoints, "save", slowly)
        assert run_here(patch, *arguments, "--epochs", 10, "--out", tmp_path) == 130
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    assert run_here(monkeypatch, *arguments, "--epochs", 10, "--out", tmp_path, "--resume") == 0


def test_compare_says_how_to_go_on(shapes_dir, clip_dir, tmp_path, monkeypatch):
    options = ["--data", shapes_dir, "--model", f"local-dir:{clip_dir}", "--out", tmp_path, "--no-cache"]
    options = ["compare", *options, "--methods", "coop", "--shots", "1", "--seeds", 20]
    process = forked_command(*options)
    wait_for(lambda: any(tmp_path.rglob("*.json")))
    process.send_signal(signal.SIGINT)
    code, _, said = process.end()
    assert "the same command goes on where it was stopped" in interrupted_line(code, said, signal.SIGINT)
    done = sorted(tmp_path.rglob("*seed[01]*.json"))
    before = [file.read_bytes() for file in done]
    assert run_here(monkeypatch, *options[:-1], 2) == 0
    assert [file.read_bytes() for file in done] == before


@pytest.mark.parametrize(
    ("shell", "code"),
    [
        ("{} --help | true", 0),
        ("{} --help <&- >&- 2>&-", 0),
        ("{} --help > /dev/full", 2),
        pytest.param("{} trane 2> /dev/full", 2, marks=pytest.mark.slow),
        pytest.param("{} --help >&-", 0, marks=pytest.mark.slow),
        pytest.param("{} --help 2>&-", 0, marks=pytest.mark.slow),
        pytest.param("{} trane 2>&-", 2, marks=pytest.mark.slow),
        pytest.param("{} trane 2>&1 >&- | true", 2, marks=pytest.mark.slow),
    ],
)
def test_streams_that_are_closed_or_full(shell, code):
    command = f"set -o pipefail; {shell.format(f'{sys.executable} -m prograd_fast')}"
    done = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) <= 1, done.stderr
    assert "Traceback" not in done.stderr


def test_an_ignored_signal_stays_ignored():
    """As under nohup."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        end_in_one_line()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_signals_wait_and_then_go_to_who_listened_before():
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with Held() as signals:
            os.kill(os.getpid(), signal.SIGTERM)
            assert (signals.came, heard) == (signal.SIGTERM, [])
            signals.deliver()
            assert (signals.came, heard) == (None, [signal.SIGTERM])
            os.kill(os.getpid(), signal.SIGTERM)
            assert len(heard) == 1  # later ones wait again
        assert len(heard) == 2
        with pytest.raises(ZeroDivisionError):  # what went wrong comes first
            goes_wrong()
        assert len(heard) == 2
    finally:
        signal.signal(signal.SIGTERM, before)


def goes_wrong() -> None:
    with Held():
        os.kill(os.getpid(), signal.SIGTERM)
        assert 1 / 0


def test_what_only_waits_can_be_stopped():
    with pytest.raises(KeyboardInterrupt):
        waits()


def waits() -> None:
    with Held() as signals:
        assert signals.wait(lambda: os.kill(os.getpid(), signal.SIGINT) or time.sleep(60)) is None
        assert signals.came == signal.SIGINT
        assert signals.wait(lambda: 1) is None  # nothing is begun any more
