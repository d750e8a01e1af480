"""`train` with all pictures, another test share, and folds: each picture is tested once, and stopped folds go on."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prograd_fast.methods import METHODS, GradientMethod
from prograd_fast.report import curves_figure
from prograd_fast.training import TrainOptions, loop, make_plan, train_method
from tests.cli.support import fail, run_here
from tests.methods.test_every_method import small
from tests.training.support import make_learner, no_bars


@pytest.fixture(scope="module")
def arguments(shapes_dir, clip_dir) -> list:
    return ["train", "--data", shapes_dir, "--epochs", 3, "--model", f"local-dir:{clip_dir}"]


def read(file: Path) -> dict:
    return json.loads(file.read_text())


@pytest.mark.parametrize("k", [2, 3])
def test_each_picture_is_tested_in_one_fold(arguments, shapes, tmp_path, capfd, monkeypatch, k):
    assert run_here(monkeypatch, *arguments, "--folds", k, "--shots", "all", "--out", tmp_path) == 0
    assert f"mean ± standard deviation over {k} folds" in capfd.readouterr().out
    records = [read(tmp_path / f"fold{i}" / "record.json") for i in range(k)]
    assert sum(record["pictures"]["all"] for record in records) == len(shapes)
    everything = {shapes.digest(row)[:32] for row in range(len(shapes))}
    assert [set(record["learned_from"]) < everything for record in records] == [True] * k
    summary = read(tmp_path / "summary.json")
    for name in ("accuracy", "zero_shot_accuracy"):
        values = [record[name]["all"] for record in records]
        assert summary[name]["all"] == pytest.approx(
            {"mean": np.mean(values), "sd": np.std(values, ddof=1), "folds": k}
        )
    assert {file.name for file in (tmp_path / "fold0").iterdir()} == {"curves.png", "prompt.safetensors", "record.json"}


def test_stopped_folds_go_on_to_the_same_numbers(arguments, tmp_path, capfd, monkeypatch):
    folds = [*arguments, "--folds", 3, "--shots", 2]
    assert run_here(monkeypatch, *folds, "--out", tmp_path / "whole") == 0
    step, taken = loop.update, []

    def stop_in_the_second_fold(*args):
        taken.append(1)
        if len(taken) == 5:
            raise KeyboardInterrupt
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "update", stop_in_the_second_fold)
        assert run_here(patch, *folds, "--out", tmp_path / "out") == 130
    assert not (tmp_path / "out" / "summary.json").exists()
    assert "holds an earlier run" in fail(capfd, monkeypatch, *folds, "--out", tmp_path / "out")
    assert run_here(monkeypatch, *folds, "--out", tmp_path / "out", "--resume") == 0
    assert "fold0 is finished: nothing is left to do" in capfd.readouterr().out
    assert read(tmp_path / "out" / "summary.json")["folds"] == read(tmp_path / "whole" / "summary.json")["folds"]
    more = [*arguments, "--folds", 2, "--shots", 2, "--out", tmp_path / "out"]
    assert "fold2 is of an earlier run with more than 2 folds" in fail(capfd, monkeypatch, *more, "--force")
    other = [*arguments, "--folds", 4, "--shots", 2, "--out", tmp_path / "out"]
    assert "fold0 holds no run to resume" in fail(capfd, monkeypatch, *other, "--resume")
    one = [*arguments, "--shots", 2, "--out", tmp_path / "out", "--force"]
    assert "holds the folds of an earlier run" in fail(capfd, monkeypatch, *one)


def test_folds_do_not_replace_a_run(arguments, tmp_path, capfd, monkeypatch):
    assert run_here(monkeypatch, *arguments, "--shots", 1, "--out", tmp_path) == 0
    line = fail(capfd, monkeypatch, *arguments, "--shots", 1, "--out", tmp_path, "--folds", 2, "--force")
    assert "holds a run without folds" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--folds 1", "'--folds'"),
        ("--folds 3 --test-share 0.2", "--test-share and --folds exclude each other"),
        ("--test-share 0", "test"),
        ("--test-share 1", "test"),
        ("--data emoji --folds 3", "emoji"),
        ("--data clipart --test-share 0.2", "clipart"),
        ("--folds 3 --patience 2", "patience: expected validation pictures to stop by, got none"),
        ("--shots 0", "--shots: expected a number of 1 or more, or all, got '0'"),
        ("--shots many", "--shots: expected a number of 1 or more, or all, got 'many'"),
        ("--shots 1.5", "--shots: expected a number of 1 or more, or all, got '1.5'"),
        ("--shots -3", "--shots: expected a number of 1 or more, or all, got '-3'"),
        ("--shots ²", "--shots: expected a number of 1 or more, or all, got '²'"),
    ],
)
def test_mistakes_get_one_line(arguments, tmp_path, capfd, monkeypatch, options, message):
    assert message in fail(capfd, monkeypatch, *arguments, "--out", tmp_path / "run", *options.split())


def test_the_test_share_decides(arguments, shapes, tmp_path, monkeypatch):
    tested = []
    for share in (0.2, 0.8):
        out = tmp_path / str(share)
        assert run_here(monkeypatch, *arguments, "--shots", "all", "--test-share", share, "--out", out) == 0
        tested.append(read(out / "record.json")["pictures"]["all"])
    assert tested[0] < (shapes.split == "test").sum() < tested[1]


def test_a_word_on_photos(shapes_dir, tmp_path, capfd, monkeypatch):
    arguments = ["train", "--method", "zero-shot", "--shots", 1]
    assert run_here(monkeypatch, *arguments, "--data", shapes_dir, "--out", tmp_path / "mine") == 0
    said = capfd.readouterr().out
    assert re.search("emoji-lite .* never saw a photo. For photos add --model ViT-B-16 --pretrained openai", said)
    assert run_here(monkeypatch, *arguments, "--data", "emoji", "--out", tmp_path / "emoji") == 0
    assert "saw a photo" not in capfd.readouterr().out


# ----------------------------------------------------------------------------------------------------- what one can see


def colours(file: Path) -> int:
    with Image.open(file) as image:
        return len(image.convert("RGB").getcolors(1 << 24))


@pytest.mark.parametrize("name", [method.name for method in METHODS])
@pytest.mark.parametrize("options", [TrainOptions(), TrainOptions(patience=2)], ids=["", "patience"])
def test_learning_curves_of_every_method(name, options, clip, shapes, tmp_path):
    steps = issubclass(type(small(name)), GradientMethod)
    for changes in ({}, {"batch_size": 3}) if steps else ({},):
        record, _ = train_method(
            small(name, **changes), clip, shapes, make_plan(shapes, 2, 0, None), no_bars, options=options
        )
        file = tmp_path / "curves.png"
        assert curves_figure(record, file, "A title with $ and _") == file.exists() == steps
        assert not steps or colours(file) > 20
        if steps:
            assert len(record["steps"]["accuracy"]) == len(record["steps"]["task_loss"])


def test_curves_that_cannot_be_drawn_lose_no_run(arguments, tmp_path, capfd, monkeypatch):
    from prograd_fast import report

    def full(*rest):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "curves_figure", full)
    assert run_here(monkeypatch, *arguments, "--shots", 1, "--out", tmp_path) == 0
    assert "the run is kept, its learning curves are not drawn" in capfd.readouterr().err
    assert (tmp_path / "record.json").exists()


def test_a_replaced_run_leaves_no_curves(arguments, tmp_path, monkeypatch):
    assert run_here(monkeypatch, *arguments, "--shots", 1, "--out", tmp_path) == 0
    zero_shot = [*arguments[:3], *arguments[5:], "--method", "zero-shot", "--shots", 1, "--force"]
    assert run_here(monkeypatch, *zero_shot, "--out", tmp_path) == 0
    assert not (tmp_path / "curves.png").exists()


def test_the_bar_moves_with_slow_steps(monkeypatch):
    """Each step takes longer than LOOK_SECONDS: each is shown when it is done."""
    seen = []
    monkeypatch.setattr(loop, "LOOK_SECONDS", 0.0)
    steps = []
    loop.tune(make_learner(), lambda: steps.append(len(seen)), log=lambda step, values: seen.append(step))
    assert steps == list(range(len(steps)))


def test_the_folder_of_folds_names_its_runs(tmp_path, capfd, monkeypatch):
    for k in (0, 1):
        (tmp_path / f"fold{k}").mkdir()
        (tmp_path / f"fold{k}" / "record.json").write_text("{}")
    line = fail(capfd, monkeypatch, "predict", tmp_path, "a.jpg")
    assert f"{tmp_path} holds 2 runs, one for each fold: give {tmp_path / 'fold0'}, say" in line
