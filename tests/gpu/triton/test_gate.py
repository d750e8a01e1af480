"""Guards the compile gate of the Triton kernels: it sees the faults it looks for. `make kernels` runs it over all."""

import dataclasses
import json
import math
import sys
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

from prograd_fast.backends.triton_kernels import dual_loss
from tests.paths import REPOSITORY

CASE = "1000 classes, bf16"


@pytest.fixture(scope="module")
def gate():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY / "tools" / "kernels")
        import triton_gate

        yield triton_gate


@pytest.fixture(scope="module")
def rows(gate):
    return gate.compile_case(CASE, 90)


@pytest.fixture
def limits(gate):
    recorded = json.loads(gate.LIMITS.read_text())
    return {key: limit for key, limit in recorded.items() if f", {CASE} sm_90" in key}


def test_the_kernels_pass(gate, rows, limits):
    assert len(limits) == 2
    assert gate.judge(rows, limits) == []


def test_narrow_loads_fail(gate, limits, monkeypatch):
    """As when the compiler is not told that rows are aligned."""
    monkeypatch.setattr(dual_loss, "math", SimpleNamespace(gcd=lambda *sizes: 1, nan=math.nan))
    faults = gate.judge(gate.compile_case(CASE, 90), limits)
    assert any("narrow global accesses" in fault for fault in faults)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"spills": 3}, "3 local accesses"),
        ({"stack": 8}, "8 bytes of stack"),
        ({"registers": 255}, "255 registers, at most"),
        ({"kernel": "unheard of"}, "not in triton_limits.json"),
    ],
)
def test_faults(gate, rows, limits, change, what):
    faults = gate.judge([dataclasses.replace(rows[0], **change), *rows[1:]], limits)
    assert any(what in fault for fault in faults)


def test_a_kernel_that_is_gone_fails(gate, limits):
    assert any("no longer compiled" in fault for fault in gate.judge([], limits))


# ---- all cases


def burn():
    while True:
        pass


def sleep():
    """As under load: more than the limit passes on the clock."""
    time.sleep(3)


def fail():
    raise RuntimeError("planted")


@pytest.fixture
def planted(gate, rows, monkeypatch, tmp_path):
    """Kernels, faults and the command's status for planted cases beside one that is right, and compiled already."""

    def run(**cases):
        cases = {CASE: gate.CASES[CASE]} | {name: gate.Case(case, 4) for name, case in cases.items()}
        monkeypatch.setattr(gate, "CASES", cases)
        monkeypatch.setattr(gate, "ARCHITECTURES", (90,))
        monkeypatch.setattr(gate, "SECONDS", 2)
        monkeypatch.setattr(gate, "LIMITS", tmp_path / "limits.json")
        gate.LIMITS.write_text(json.dumps({row.key: dataclasses.asdict(row) for row in rows}))
        compiled, faults = gate.compile_all()
        assert compiled == rows
        monkeypatch.setattr(sys, "argv", ["triton_gate.py"])
        return faults, gate.main()

    return run


def test_time_on_the_clock_does_not_count(planted):
    assert planted(sleep=sleep) == ([], 0)


def test_what_fails_takes_nothing_with_it(planted, capsys):
    """Neither a case that computes for too long nor one that raises hides the others, or makes them gone."""
    faults, status = planted(burn=burn, fail=fail)
    assert sorted(faults) == [
        "burn sm_90: compiling took over 2 s of a processor",
        "fail sm_90: RuntimeError: planted",
    ]
    assert status == 1
    printed = capsys.readouterr().err
    assert [printed.count(fault) for fault in faults] == [1, 1]
    assert "no longer compiled" not in printed
