"""Guards the fuzz driver: it sees crashes, hangs and exceptions and goes on. Runs the first cases of all targets."""

import ctypes
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import driver
from tests.fuzz.registry import TARGETS, load_targets

PLANTED = "planted faults"  # a target of this module alone


def planted(random: Random, folder: Path) -> None:
    match random.randrange(5):
        case 0:
            ctypes.string_at(0)
        case 1:
            raise ValueError("an exception")
        case 2:
            sys.exit(3)
        case 3:
            bytearray(driver.MEMORY)
        case _:
            (folder / "left behind").touch()


@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_nothing_is_found(seconds: float) -> None:
    """The cases of `make fuzz` begin with these."""
    load_targets()
    results = driver.run(sorted(TARGETS), seed=0, seconds=seconds, most_cases=1000)
    assert not driver.report(results)
    assert all(result.cases >= driver.LEAST for result in results)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Workers of this test have the planted target."""
    start = tmp_path / "start.py"
    start.write_text(
        "import tests.fuzz.__main__ as m, tests.fuzz.registry as r, tests.fuzz.test_driver as t\n"
        "m.load_targets = lambda: None\n"  # they take seconds to import
        f"r.target({PLANTED!r})(t.planted)\n"
        "m.main()\n"
    )
    popen = subprocess.Popen

    def with_it(command: list[str], **options: object) -> "subprocess.Popen[bytes]":
        assert command[1:3] == ["-m", "tests.fuzz"]
        code = f"exec(open({str(start)!r}).read())"
        return popen([command[0], "-c", code, *command[3:]], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", with_it)


@pytest.mark.usefixtures("plant")
def test_every_kind_of_fault_is_found_and_the_others_go_on() -> None:
    seed = 0  # whose first cases are of all kinds
    (result,) = driver.run([PLANTED], seed, seconds=60, most_cases=9)
    assert result.cases == 9
    kinds = [Random(f"{seed} {PLANTED} {index}").randrange(5) for index in range(result.cases)]
    assert {0, 1, 2, 3, 4} == set(kinds)
    assert sorted(f.index for f in result.findings) == [index for index, kind in enumerate(kinds) if kind < 4]
    told = {kinds[f.index]: f.what for f in result.findings}
    assert "the process ended with -11" in told[0]
    assert "ValueError: an exception" in told[1]
    assert "SystemExit: 3" in told[2]
    assert "MemoryError" in told[3]
    assert f'python -m tests.fuzz --seed {seed} --case {result.findings[0].index} "planted' in str(result.findings[0])


def test_a_hang_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(driver, "PATIENCE", 0.5)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    notes = tmp_path / "notes"
    notes.touch()
    started = time.monotonic()
    assert driver._wait(process, notes)
    assert time.monotonic() - started < 10
    assert process.returncode == -9


def test_a_case_is_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []
    monkeypatch.setitem(TARGETS, PLANTED, lambda random, folder: drawn.append(random.random()))
    for index in (3, 4, 3):
        driver.run_case(PLANTED, seed=7, index=index)
    assert drawn[0] == drawn[2] != drawn[1]
