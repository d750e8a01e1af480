"""Each test that guards its tensors runs twice: with the page that nobody may touch before them, and behind them."""

import pytest

from tests.gpu.simt.guarded import SIDES, Guarded


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise the tests of modules that use `Guarded`; planted faults are compiled for seconds, and run once."""
    chosen = any(mark.args[0] == "page" for mark in metafunc.definition.iter_markers("parametrize"))
    if "Guarded" in vars(metafunc.module) and "fault" not in metafunc.fixturenames and not chosen:
        metafunc.parametrize("page", SIDES, indirect=True)


@pytest.fixture(autouse=True)
def page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the page lies that tensors are against."""
    monkeypatch.setattr(Guarded, "side", getattr(request, "param", "above"))
