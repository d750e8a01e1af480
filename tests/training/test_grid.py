"""A grid runs what is missing, goes on where it was stopped, and mixes no runs of other grids."""

import json
from dataclasses import replace

import pytest
import torch

from prograd_fast.methods import CoOp, LinearProbe, ProGradCoOp, ZeroShot
from prograd_fast.training import Grid, TrainOptions, run_grid, run_method
from prograd_fast.training import grid as grid_module
from prograd_fast.training.memory import PeakMemory
from tests.training.support import accuracies, no_bars

METHODS = (ZeroShot(), LinearProbe(), CoOp(epochs=3), ProGradCoOp(epochs=4))


def test_peak_memory_of_a_block():
    with PeakMemory(torch.device("cpu")) as memory:
        block = torch.ones(2**24)  # 64 MiB
        del block
    assert memory.bytes is not None  # on Linux
    assert 0.9 * 2**26 < memory.bytes < 1.5 * 2**26
    with PeakMemory(torch.device("cpu")) as memory:
        pass
    assert memory.bytes is not None
    assert memory.bytes < 2**24


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """The method of every run that is really run."""
    names = []

    def run(method, *rest, **options):
        names.append(method.name)
        return run_method(method, *rest, **options)

    monkeypatch.setattr(grid_module, "run_method", run)
    return names


def test_a_grid_goes_on_and_grows(clip, shapes, tmp_path, counted, monkeypatch):
    grid = Grid(METHODS, [1, 2], seeds=2)
    expected = accuracies(run_grid(grid, clip, shapes, tmp_path / "whole", no_bars))
    assert len(counted) == 16

    def vanish_at_the_sixth(method, *rest, **options):
        if len(counted) == 5:
            raise KeyboardInterrupt
        counted.append(method.name)
        return run_method(method, *rest, **options)

    counted.clear()
    with monkeypatch.context() as patch:
        patch.setattr(grid_module, "run_method", vanish_at_the_sixth)
        with pytest.raises(KeyboardInterrupt):
            run_grid(grid, clip, shapes, tmp_path / "out", no_bars)
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 5
    assert accuracies(run_grid(grid, clip, shapes, tmp_path / "out", no_bars)) == expected
    assert len(counted) == 16
    larger = run_grid(replace(grid, seeds=3), clip, shapes, tmp_path / "out", no_bars)
    assert len(counted) == 16 + 8
    assert [run for run in accuracies(larger) if run[2] < 2] == expected
    assert all(file.suffix == ".json" for file in (tmp_path / "out" / "runs").iterdir())


def test_a_damaged_run_is_run_again(clip, shapes, tmp_path, counted, caplog):
    grid = Grid(METHODS[:1], [1], seeds=2)
    expected = accuracies(run_grid(grid, clip, shapes, tmp_path, no_bars))
    file = tmp_path / "runs" / "zero-shot-1shots-seed1.json"
    file.write_bytes(file.read_bytes()[:50])
    assert accuracies(run_grid(grid, clip, shapes, tmp_path, no_bars)) == expected
    assert len(counted) == 3
    assert f"{file} is damaged" in caplog.text


def test_runs_of_another_grid_are_refused(clip, shapes, tmp_path, counted):
    run_grid(Grid([CoOp(epochs=2)], [1], seeds=1), clip, shapes, tmp_path, no_bars)
    for other, name in (
        (Grid([CoOp(epochs=3)], [1], seeds=1), "settings.epochs"),
        (Grid([CoOp(epochs=2)], [1], seeds=1, imbalance=2.0), "imbalance"),
        (Grid([CoOp(epochs=2)], [1], seeds=1, options=TrainOptions("bf16")), "regime.precision"),
    ):
        with pytest.raises(ValueError, match=f"a run of another grid: its {name} is"):
            run_grid(other, clip, shapes, tmp_path, no_bars)
    assert len(counted) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": []}, "methods: expected one or more, each once, got none"),
        ({"methods": [CoOp(), CoOp(lr=1.0)]}, "methods: expected one or more, each once, got coop, coop"),
        ({"shots": [1, 1]}, "shots: expected one or more, each once, got 1, 1"),
        ({"seeds": 0}, "seeds: expected 1 or more, got 0"),
        ({"partitions": 1, "imbalance": 2.0}, "imbalance: a long-tailed grid learns all classes"),
    ],
)
def test_grids_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        Grid(**{"methods": METHODS, "shots": [1], "seeds": 1} | settings)


def test_a_grid_runs_every_method_on_every_partition_and_seed(clip, shapes, tmp_path):
    bars = []

    class Counting:
        def __init__(self, label: str, total: int) -> None:
            self.total, self.done = total, 0
            bars.append(self)

        def __call__(self) -> None:
            self.done += 1

    results = run_grid(Grid(METHODS, [2], seeds=2, partitions=2), clip, shapes, tmp_path, Counting)
    runs = results["runs"]
    assert [(run["partition"], run["seed"], run["method"]) for run in runs] == [
        (partition, seed, method.name) for partition in range(2) for seed in range(2) for method in METHODS
    ]
    assert [len(run["steps"]["cosine"]) for run in runs if "steps" in run] == [3, 4] * 4
    assert all(bar.done == bar.total for bar in bars)
    json.dumps(results, allow_nan=False)
