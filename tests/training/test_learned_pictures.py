"""Nothing is tested on pictures that were learned from, and a record knows which they were."""

import json
import re

import numpy as np
import pytest

from prograd_fast.data import load, load_folder
from prograd_fast.methods import CoOp
from prograd_fast.training import Grid, make_plan, run_grid, unlearned
from tests.cli.support import run_here
from tests.conftest import draw_shapes
from tests.training.pictures import own_split
from tests.training.support import no_bars, train_once


@pytest.mark.parametrize(("test", "left"), [("none", 32), ("half", 16)])
@pytest.mark.parametrize("partition", [None, 0])
def test_pictures_that_are_learned_from_are_no_test(tmp_path, test, left, partition):
    pictures = load_folder(own_split(tmp_path / "mine", test))
    plan = make_plan(pictures, 8, 0, partition)
    learned = {pictures.digest(row) for row in plan.train.rows}
    tested = [row for part in plan.tests.values() for row in part.rows]
    assert not learned & {pictures.digest(row) for row in tested}
    lost = 32 - left if partition is None else (32 - left) // 2  # new classes are not learned from
    assert len(tested) == 32 - lost
    assert sum(plan.left_out.values()) == lost


def test_few_shots_leave_out_only_what_they_learned(tmp_path):
    pictures = load_folder(own_split(tmp_path / "mine", "all"))
    plan = make_plan(pictures, 2, 0, None)
    assert plan.left_out == {"all": 8}
    assert len(plan.tests["all"].rows) == 24


def test_a_set_that_is_all_learned_cannot_be_tested(tmp_path):
    pictures = load_folder(own_split(tmp_path / "mine", "all"))
    with pytest.raises(ValueError, match="mine: all 32 test pictures are learned from too; expected others"):
        make_plan(pictures, 8, 0, None)


@pytest.mark.parametrize("imbalance", [2.0, 4.0])
def test_a_long_tailed_plan_leaves_them_out_too(tmp_path, imbalance):
    pictures = load_folder(own_split(tmp_path / "mine", "half"))
    plan = make_plan(pictures, 8, 0, None, imbalance)
    learned = {pictures.digest(row) for row in plan.train.rows}
    assert {"balanced", "long-tail"} <= plan.tests.keys()
    assert not learned & {pictures.digest(row) for part in plan.tests.values() for row in part.rows}


@pytest.mark.parametrize("name", ["emoji", "clipart"])
def test_embedded_sets_lose_nothing(name):
    pictures = load(name)
    assert not make_plan(pictures, 16, 0, 0).left_out


def test_the_command_says_how_many(tmp_path, clip_dir, capfd, monkeypatch):
    data = own_split(tmp_path / "mine", "half")
    arguments = ["--data", data, "--shots", "all", "--epochs", 1, "--model", f"local-dir:{clip_dir}"]
    assert run_here(monkeypatch, "train", *arguments, "--out", tmp_path / "run") == 0
    assert "Left out of the tests: 16 pictures that are among those to learn from too." in capfd.readouterr().out
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["left_out"] == {"all": 16}
    assert record["pictures"] == {"train": 32, "all": 16}
    assert record["shots"] == 8
    assert len(record["learned_from"]) == 32


def test_a_record_knows_what_was_learned_whatever_the_files_are_called(clip, shapes, tmp_path):
    record, _ = train_once(clip, shapes)
    assert record["learned_from"] == sorted(record["learned_from"])
    assert all(re.fullmatch("[0-9a-f]{32}", digest) for digest in record["learned_from"])
    other = load_folder(draw_shapes(tmp_path / "renamed"))
    for i, file in enumerate(sorted((tmp_path / "renamed").glob("*/*.png"))):
        file.rename(file.with_name(f"{97 * i % 101}-{i}.png"))
    other = load_folder(tmp_path / "renamed", whole=True)
    marked = unlearned(other, set(record["learned_from"]))
    assert (marked.split == "learned").sum() == len(record["learned_from"])
    assert {digest[:32] for digest in map(other.digest, np.flatnonzero(marked.split == "learned").tolist())} == set(
        record["learned_from"]
    )


def test_other_sets_are_not_tested_on_what_was_learned(clip, shapes, tmp_path):
    everything = load_folder(shapes.folder, whole=True)
    results = run_grid(Grid([CoOp(epochs=1)], [2], seeds=1), clip, shapes, tmp_path, no_bars, transfer=[everything])
    (run,) = results["runs"]
    (label,) = results["elsewhere"]
    assert run["left_out"] == {label: 8}
