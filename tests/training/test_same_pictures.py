"""Sets are known by what they hold: no result of other pictures is taken for one's own, and equal runs run once."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prograd_fast.data import PictureSet, load_folder
from prograd_fast.methods import ZeroShot
from prograd_fast.training import Grid, other_sets, run_grid
from tests.cli.support import fail, run_here
from tests.conftest import SHAPES, draw, draw_shapes
from tests.training.pictures import own_split
from tests.training.support import no_bars


def made_up(name: str, folder: str | None, seed: int) -> PictureSet:
    return PictureSet(
        name,
        ("a", "b"),
        np.array([0, 1]),
        np.array(["test", "test"]),
        np.array(["", ""]),
        [b"%d" % seed, b"%d!" % seed],
        None if folder is None else Path(folder),
    )


@pytest.mark.parametrize(
    ("folders", "labels"),
    [
        (["/x/site1/pics", "/x/site2/pics"], ["site1/pics", "site2/pics"]),
        (["/x/a/site/pics", "/x/b/site/pics"], ["a/site/pics", "b/site/pics"]),
        (["/x/site/pics", "/x/other"], ["pics", "other"]),
        (["/x/all"], ["x/all"]),
        (["/x/new", "/y/new"], ["x/new", "y/new"]),
        (["/x/base"], ["x/base"]),
        (["/x/validation"], ["x/validation"]),
        (["/x/harmonic mean"], ["x/harmonic mean"]),
        (["/x/balanced", "/x/long-tail"], ["x/balanced", "x/long-tail"]),
        (["/all"], ["//all"]),
        (["/x/mine"], ["x/mine"]),  # as the set that is learned from
        (["/x/openmoji/base"], ["x/openmoji/base"]),  # a test of emoji's
    ],
)
def test_labels_are_unique(folders, labels):
    sets = [made_up(Path(folder).name, folder, i) for i, folder in enumerate(folders)]
    assert [other.label for other in other_sets(sets, ["mine", "openmoji/base"])] == labels


def test_labels_of_sets_without_a_folder():
    labels = [other.label for other in other_sets([made_up("all", None, 0), made_up("all", None, 1)])]
    assert len(set(labels)) == 2
    assert all(re.fullmatch("all [0-9a-f]{8}", label) for label in labels)


def test_the_same_pictures_twice_are_refused():
    with pytest.raises(ValueError, match="/x/one and /x/two are the same test pictures"):
        other_sets([made_up("one", "/x/one", 0), made_up("two", "/x/two", 0)])


def test_sets_of_one_name_keep_their_own_results(clip_dir, tmp_path, capfd, monkeypatch):
    for site in ("site1", "site2"):
        draw_shapes(tmp_path / site / "pics", per_class=4)
    for file in (tmp_path / "site2" / "pics").glob("*/*.png"):  # each class drawn as another
        draw("black_dot" if "dot" not in str(file) else "red_circle", int(file.stem) + len(str(file))).save(file)
    data = draw_shapes(tmp_path / "all", per_class=5)
    arguments = ["compare", "--data", data, "--methods", "zero-shot", "--shots", 1, "--seeds", 1]
    arguments += ["--model", f"local-dir:{clip_dir}", "--out", tmp_path / "grid"]
    also = [word for site in ("site1", "site2") for word in ("--also", tmp_path / site / "pics")]
    assert run_here(monkeypatch, *arguments, *also) == 0
    results = json.loads((tmp_path / "grid" / "results.json").read_text())
    assert results["elsewhere"] == ["site1/pics", "site2/pics"]
    accuracy = results["runs"][0]["accuracy"]
    for site in ("site1", "site2"):
        alone = [*arguments[:-1], tmp_path / site / "grid", "--also", tmp_path / site / "pics"]
        assert run_here(monkeypatch, *alone) == 0
        (run,) = json.loads((tmp_path / site / "grid" / "results.json").read_text())["runs"]
        assert run["accuracy"]["pics"] == accuracy[f"{site}/pics"]
    capfd.readouterr()
    line = fail(capfd, monkeypatch, *arguments, "--also", tmp_path / "site2" / "pics")
    assert "is a run of another grid: it was tested on other sets" in line


def test_all_pictures_of_another_folder_are_tested_on(clip_dir, tmp_path, capfd, monkeypatch):
    """Those of a folder that shares pictures with the one to learn from are split as ever."""
    data, other = draw_shapes(tmp_path / "mine", per_class=5), draw_shapes(tmp_path / "other", per_class=3)
    for file in other.glob("*/*.png"):
        draw("black_dot", 1000 + int(file.stem) + len(str(file))).save(file)
    arguments = ["compare", "--data", data, "--methods", "zero-shot", "--shots", 1, "--seeds", 1]
    arguments += ["--model", f"local-dir:{clip_dir}", "--out", tmp_path / "grid"]
    shutil.copytree(data, tmp_path / "copy")
    assert run_here(monkeypatch, *arguments, "--also", other, "--also", tmp_path / "copy") == 0
    looked = dict(re.findall(r"looking at (\w+) .* \d+/(\d+)", capfd.readouterr().err))
    (run,) = json.loads((tmp_path / "grid" / "results.json").read_text())["runs"]
    assert looked == {"the": looked["the"], "other": "12", "copy": str(run["pictures"]["all"])}


# -------------------------------------------------------------------------------------- what is resumed is the same run


def repaint(pictures: PictureSet, split: str) -> Path:
    """Change one picture of this part, and nothing that decides where it belongs: it has a split of its own."""
    row = int(np.flatnonzero(pictures.split == split)[0])
    file = Path(pictures.source[row])  # type: ignore[arg-type]
    draw("black_dot", 999).save(file)
    return file


@pytest.fixture
def split_dir(tmp_path) -> Path:
    """A folder with a split of its own, validation pictures too."""
    root = own_split(tmp_path / "mine", "none")
    for label, folder in enumerate(SHAPES):
        (root / "val" / folder).mkdir(parents=True)
        draw(folder, 100 * label + 90).save(root / "val" / folder / "0.png")
    return root


@pytest.mark.parametrize(("split", "what"), [("test", "tested"), ("validation", "tested"), ("pool", "learned from")])
def test_changed_pictures_are_another_run(split_dir, split, what, clip_dir, tmp_path, capfd, monkeypatch):
    arguments = ["--data", split_dir, "--model", f"local-dir:{clip_dir}", "--shots", 8]
    train = ["train", *arguments, "--epochs", 1, "--out", tmp_path / "run", "--resume"]
    compare = ["compare", *arguments, "--methods", "zero-shot", "--seeds", 1, "--out", tmp_path / "grid"]
    assert run_here(monkeypatch, *train) == run_here(monkeypatch, *compare) == 0
    assert run_here(monkeypatch, *train) == run_here(monkeypatch, *compare) == 0
    repaint(load_folder(split_dir), split)
    for command in (train, compare):
        capfd.readouterr()
        assert f"{what}" in fail(capfd, monkeypatch, *command)


def test_another_folder_of_the_same_name_is_another_grid(clip_dir, tmp_path, capfd, monkeypatch):
    arguments = ["--methods", "zero-shot", "--shots", 1, "--seeds", 1, "--model", f"local-dir:{clip_dir}"]
    arguments += ["--out", tmp_path / "grid"]
    one = draw_shapes(tmp_path / "site1" / "pics", per_class=5)
    assert run_here(monkeypatch, "compare", "--data", one, *arguments) == 0
    shutil.copytree(one, tmp_path / "site2" / "pics")
    assert run_here(monkeypatch, "compare", "--data", tmp_path / "site2" / "pics", *arguments) == 0  # the same pictures
    for i, folder in enumerate(SHAPES):
        draw(folder, 700 + i).save(tmp_path / "site2" / "pics" / folder / "more.png")
    capfd.readouterr()
    assert "is a run of another grid" in fail(
        capfd, monkeypatch, "compare", "--data", tmp_path / "site2" / "pics", *arguments
    )


def test_a_picture_that_changes_its_class_is_another_run(clip, tmp_path):
    """The same contents in the same order, and other labels."""
    pictures = load_folder(own_split(tmp_path / "mine", "none"))
    moved = replace(pictures, labels=pictures.labels.copy())
    row = int(np.flatnonzero((pictures.labels == 0) & (pictures.split == "test"))[0])
    moved.labels[row] = 1
    grid = Grid([ZeroShot()], [8], seeds=1)
    run_grid(grid, clip, pictures, tmp_path / "grid", no_bars)
    with pytest.raises(ValueError, match="it was tested on other pictures"):
        run_grid(grid, clip, moved, tmp_path / "grid", no_bars)


# ---------------------------------------------------------------------------------------------------------- equal shots


@pytest.mark.parametrize(
    ("shots", "kept", "equal"),
    [([10, 16], [10], {"16": 10}), ([16, 2, 10], [2, 10], {"16": 10}), ([1, 2], [1, 2], {}), ([99], [99], {})],
)
def test_equal_shots_run_once(clip, shapes, tmp_path, shots, kept, equal):
    results = run_grid(Grid([ZeroShot()], shots, seeds=1), clip, shapes, tmp_path, no_bars)
    assert [run["shots"] for run in results["runs"]] == kept
    assert results["equal_shots"] == equal


def test_equal_shots_are_told(shapes_dir, clip_dir, tmp_path, capfd, monkeypatch):
    arguments = ["--methods", "zero-shot", "--shots", "10,16", "--seeds", 1, "--model", f"local-dir:{clip_dir}"]
    assert run_here(monkeypatch, "compare", "--data", shapes_dir, "--out", tmp_path / "grid", *arguments) == 0
    said = "No class has more pictures for 16 shots than for 10: the runs with 10 stand for both."
    assert said in capfd.readouterr().out
    assert said in (tmp_path / "grid" / "tables.md").read_text()
