"""The model of an H100 in docs/kernels.md: what sets a time, what the gate knows, and where the tables go."""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from tests.paths import REPOSITORY


@pytest.fixture
def roofline(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(REPOSITORY / "tools" / "kernels"))
    import roofline

    yield roofline
    sys.modules.pop("roofline", None)


def gate_row(kernel: str, registers: int = 40, **more: Any) -> dict[str, Any]:
    return {"kernel": kernel, "arch": "sm_90", "registers": registers, "occupancy": 0.5, **more}


def test_the_largest_part_sets_the_time(roofline: ModuleType) -> None:
    def bound(row: dict[str, Any] | None = None, **work: Any) -> tuple[float, str]:
        full = {"size": "", "dtype": "bf16", "least": 0, "moved": 0, "launches": 1, "blocks": 132} | work
        return roofline.seconds(roofline.Work(**full), row)

    assert bound(moved=3.35e9) == (pytest.approx(1e-3), "memory")
    # one multiprocessor has a part of the bandwidth, and of the tensor cores
    assert bound(moved=64 * 1.755e6, blocks=1) == (pytest.approx(1e-3), "memory")
    assert bound(operations=989e9) == (pytest.approx(1e-3), "products")
    assert bound(operations=989e9, blocks=66) == (pytest.approx(2e-3), "products")
    assert bound(operations=67e9, dtype="fp32", blocks=None) == (pytest.approx(1e-3), "products")
    assert bound(launches=3) == (pytest.approx(6e-6), "launches")
    counted = gate_row("dual_loss bf16", per_element=150, loop_instructions=1200, loop_special=40)
    assert roofline.per_element(counted) == (150, 5)
    assert bound(counted, elements=22_364_184)[1] == "instructions"


def test_the_row_of_a_kernel_is_its_own_or_the_worst_of_its_kind(roofline: ModuleType) -> None:
    rows = [gate_row("adamw bf16"), gate_row("adamw bf16, moments fp32", 64), gate_row("adamw fp32", 99)]
    assert roofline.row_of(rows[1:], "adamw bf16") == rows[1]
    assert roofline.row_of(rows, "adamw bf16") == rows[0]
    assert roofline.row_of([row | {"arch": "sm_80"} for row in rows], "adamw bf16") is None
    assert roofline.row_of(rows, "") is None


def test_the_bytes_of_the_dual_loss(roofline: ModuleType) -> None:
    for work in roofline.dual_loss():
        assert work.least == work.elements * {"fp32": 16, "bf16": 8}[work.dtype]
        assert work.moved == work.elements * {"fp32": 16, "bf16": 12}[work.dtype]


def test_a_list_of_400_tensors_is_one_launch(roofline: ModuleType) -> None:
    launches = {work.size: work.launches for work in roofline.updates()}
    assert launches["200 × 8192"] == launches["400 × 2048"] == launches["10⁶"] == 1


def test_tables_go_between_the_marks_and_say_what_they_are(roofline: ModuleType) -> None:
    tables = roofline.page([gate_row("adamw fp32", 61)])
    page = roofline.PAGE.read_text()
    once = roofline.written(page, tables)
    assert roofline.written(once, tables) == once
    assert once.startswith(page[: page.index(roofline.BEGIN)])
    assert once.endswith(page[page.index(roofline.END) :])
    heads = [line for line in tables.splitlines() if line.startswith("| size")]
    assert len(heads) == len(roofline.FAMILIES)
    assert all(line.endswith("model, not measured |") for line in heads)
    assert "| 61 | 0.50 |" in tables


def test_the_page_has_every_family(roofline: ModuleType) -> None:
    page = roofline.PAGE.read_text()
    tables = page[page.index(roofline.BEGIN) : page.index(roofline.END)]
    assert [line[5:-1] for line in tables.splitlines() if line.startswith("### ")] == list(roofline.FAMILIES)
