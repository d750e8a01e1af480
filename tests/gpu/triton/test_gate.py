"""Guards the compile gate of the Triton kernels: it sees the faults it looks for. `make kernels` runs it over all."""

import dataclasses
import json
import math
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
