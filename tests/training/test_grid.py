"""Protocols, grids of runs that go on where they were stopped, and what they end with."""

import io
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from prograd_fast.data import PictureSet, load
from prograd_fast.data.splits import few_shot, long_tail
from prograd_fast.methods import CoOp, LinearProbe, ProGrad, ZeroShot
from prograd_fast.report import report_comparison
from prograd_fast.report.statistics import Spread
from prograd_fast.training import Grid, Regime, encode_pictures, make_plan, run_grid, run_method
from prograd_fast.training import grid as grid_module
from prograd_fast.training.memory import PeakMemory
from prograd_fast.training.run import Elsewhere
from tests.cli.support import fail, run_here

METHODS = (ZeroShot(), LinearProbe(), CoOp(epochs=3), ProGrad(epochs=4))


def no_bars(label: str, total: int):
    return lambda: None


# ------------------------------------------------------------------------------------------------------------ protocols


def test_long_tail_is_exponential_in_random_order():
    weights = long_tail(5, 16.0, seed=0)
    np.testing.assert_allclose(np.sort(weights), [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1])
    assert not np.array_equal(weights, long_tail(5, 16.0, seed=1))
    assert long_tail(1, 16.0, seed=0).tolist() == [1.0]  # one class is the most frequent one
    assert long_tail(3, 1.0, seed=0).tolist() == [1.0] * 3


def test_long_tailed_plan():
    pictures = load("emoji")
    plan = make_plan(pictures, shots=16, seed=0, partition=None, imbalance=8.0)
    wanted = np.maximum(1, np.rint(16 * long_tail(44, 8.0, seed=0)).astype(int))
    pool = np.bincount(pictures.labels[few_shot(pictures, range(44), 1000, 0, plan_styles(plan, pictures))])
    learned = np.bincount(plan.train.labels(pictures).numpy(), minlength=44)
    assert learned.tolist() == np.minimum(wanted, pool).tolist()
    balanced, tail = (
        np.bincount(plan.tests[name].labels(pictures).numpy(), minlength=44) for name in ("balanced", "long-tail")
    )
    assert len(set(balanced.tolist())) == 1
    order = np.argsort(long_tail(44, 8.0, seed=0))
    assert (np.diff(tail[order]) >= 0).all()  # as frequent as those learned from
    assert 4 <= tail.max() / tail.min() <= 12  # 8, but for rounding of small numbers
    assert set(plan.tests["balanced"].rows) <= set(plan.tests["all"].rows)
    assert {"all", "openmoji/all"} <= set(plan.tests)


def plan_styles(plan, pictures: PictureSet) -> list[str]:
    return sorted(set(pictures.style[plan.train.rows]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"partition": 0, "imbalance": 2.0}, "no partition beside an imbalance"),
        ({"partition": None, "imbalance": 0.5}, "imbalance must be 1 or more"),
        ({"partition": None, "imbalance": math.nan}, "imbalance must be 1 or more"),
    ],
)
def test_long_tailed_plans_that_cannot_be(shapes, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_plan(shapes, 2, 0, **arguments)


def test_tested_elsewhere(clip, shapes):
    plan = make_plan(shapes, shots=2, seed=0, partition=None)
    features = encode_pictures(clip, shapes, np.arange(len(shapes)))
    other = replace(shapes, name="other")
    elsewhere = [Elsewhere(other, features, plan.tests["all"])]
    coop, probe = (run_method(m, clip, shapes, features, plan, elsewhere=elsewhere) for m in (METHODS[2], METHODS[1]))
    assert coop.accuracy["other"] == coop.accuracy["all"]  # the same pictures and classes
    assert "other" not in probe.accuracy  # it cannot name classes of another set


# ----------------------------------------------------------------------------------------------------------- statistics


def test_spread_of_runs():
    spread = Spread.of([1.0, 2.0, 3.0, 4.0])
    sd = math.sqrt(5 / 3)
    assert (spread.mean, spread.n) == (2.5, 4)
    assert spread.sd == pytest.approx(sd)
    assert spread.half_width == pytest.approx(3.182446305 * sd / 2, rel=1e-8)  # t-table: 0.975, 3 degrees of freedom
    assert str(spread) == "2.5 ± 2.1 (1.3)"
    assert str(Spread.of([40.0])) == "40.0"


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


# ----------------------------------------------------------------------------------------------------------------- grid


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """The method of every run that is really run."""
    names = []

    def run(method, *rest, **options):
        names.append(method.name)
        return run_method(method, *rest, **options)

    monkeypatch.setattr(grid_module, "run_method", run)
    return names


def accuracies(results) -> list:
    return [(run["method"], run["shots"], run["seed"], run["accuracy"]) for run in results["runs"]]


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
        (Grid([CoOp(epochs=3)], [1], seeds=1), "settings"),
        (Grid([CoOp(epochs=2)], [1], seeds=1, imbalance=2.0), "imbalance"),
        (Grid([CoOp(epochs=2)], [1], seeds=1, regime=Regime("bf16")), "regime"),
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


# --------------------------------------------------------------------------------------------------------------- report


def test_report_of_base_and_new_classes(clip, shapes, tmp_path):
    grid = Grid(METHODS, [1, 2], seeds=2, partitions=1)
    results = run_grid(grid, clip, shapes, tmp_path, no_bars, elsewhere=[replace(shapes, name="other")])
    results["runs"][2]["steps"]["cosine"][1] = None  # a gradient was zero
    stream = io.StringIO()
    report_comparison(results, tmp_path, Console(file=stream, width=200))
    pictures = ["conflict.png", "cost.png", "plane.png", "shots.png"]
    assert {file.name for file in tmp_path.iterdir()} == {*pictures, "results.json", "runs", "tables.md"}
    for name in pictures:
        with Image.open(tmp_path / name) as image:
            assert len(image.convert("RGB").getcolors(1 << 24)) > 20  # something is drawn
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    text = (tmp_path / "tables.md").read_text()
    assert "Model local-dir:" in text
    assert "transform Compose(" in text
    assert "fp32" in text
    assert "base and new classes, partitions 0; shots 1, 2; seeds 0, 1." in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == ["method", "shots", "base", "new", "harmonic mean", "other"]
    assert [row[:2] for row in rows[2:]] == [
        [title, shots] for title in ("zero-shot", "linear probe", "CoOp", "ProGrad") for shots in ("1", "2")
    ]
    coop = [100 * run["accuracy"]["new"] for run in results["runs"] if run["method"] == "coop" and run["shots"] == 2]
    assert rows[7][3] == str(Spread.of(coop))
    assert rows[5][3:] == ["-", "-", "-"]  # the probe cannot name new classes
    assert "linear probe" in stream.getvalue()


def test_report_of_one_run_without_gradients(clip, shapes, tmp_path):
    results = run_grid(Grid(METHODS[:1], [1], seeds=1), clip, shapes, tmp_path, no_bars)
    report_comparison(results, tmp_path, Console(file=io.StringIO()))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cost.png", "results.json", "runs", "tables.md"]
    assert re.search(r"\| zero-shot \| 1 \| \d+\.\d \|", (tmp_path / "tables.md").read_text())


# -------------------------------------------------------------------------------------------------------------- command


def test_compare(shapes_dir, clip_dir, tmp_path, capfd, monkeypatch):
    (tmp_path / "settings.json").write_text('{"coop": {"epochs": 2}, "prograd": {"epochs": 2, "lr": 0.1}}')
    arguments = ["compare", "--data", shapes_dir, "--methods", "zero-shot,coop,prograd", "--shots", "1,2"]
    arguments += ["--seeds", 2, "--imbalance", 2, "--views", 2, "--model", f"local-dir:{clip_dir}"]
    arguments += ["--settings", tmp_path / "settings.json", "--out", tmp_path / "grid"]
    for _ in range(2):  # the second time everything is there
        assert run_here(monkeypatch, *arguments) == 0
    printed = capfd.readouterr().out
    assert "long-tail" in printed
    assert "Wrote results.json, tables.md, shots.png, conflict.png, cost.png in" in " ".join(printed.split())
    results = json.loads((tmp_path / "grid" / "results.json").read_text())
    assert len(results["runs"]) == 12
    run = results["runs"][-1]
    assert (run["method"], run["settings"]["lr"], run["regime"]["views"], run["imbalance"]) == ("prograd", 0.1, 2, 2)
    assert {"all", "balanced", "long-tail", "validation"} == run["accuracy"].keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--methods coop,lora", "unknown method 'lora'"),
        ("--methods coop,coop", "methods: expected one or more, each once"),
        ("--shots 1,two", "--shots: expected numbers with commas"),
        ("--shots 0", "shots must be 1 or more, got 0"),
        ("--seeds 0", "'--seeds'"),
        ("--partitions 1 --imbalance 3", "long-tailed grid learns all classes"),
        ("--also nowhere", "no picture set or folder 'nowhere'"),
        ("--settings nowhere.json", "nowhere.json cannot be read as JSON"),
        ("--settings LIST", 'expected {"METHOD": {"NAME": VALUE'),
        ("--settings OTHER", "--settings has 'lora', which is not among the methods"),
        ("--settings WRONG", "coop has no setting speed"),
        ("--precision int8", "precision: expected one of"),
        ("--model ViT-B-23", "unknown model 'ViT-B-23'"),
    ],
)
def test_mistakes_get_one_line(arguments, message, shapes_dir, tmp_path, capfd, monkeypatch):
    for name, content in (("LIST", "[1]"), ("OTHER", '{"lora": {}}'), ("WRONG", '{"coop": {"speed": 1}}')):
        (tmp_path / name).write_text(content)
    words = [tmp_path / word if word in ("LIST", "OTHER", "WRONG") else word for word in arguments.split()]
    line = fail(capfd, monkeypatch, "compare", "--data", shapes_dir, "--out", tmp_path / "out", *words)
    assert re.search(re.escape(message), line), line
    assert not (tmp_path / "out").exists()
