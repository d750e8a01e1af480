"""Sets of the benchmark go through the commands that a folder goes through, by name and root."""

import csv
import json
from pathlib import Path

import pytest

from prograd_fast import cli
from prograd_fast.training import load_run
from tests.cli.support import run_here
from tests.data import layouts
from tests.data.layouts import IMAGENET


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """ImageNet, its variants and a set with a split; tests only read it."""
    folder = tmp_path_factory.mktemp("benchmark")
    layouts.make_imagenet(folder)
    layouts.make_split(folder, "oxford_pets")
    for name in layouts.VARIANTS:
        layouts.make_variant(folder, name)
    return folder


@pytest.fixture(scope="module")
def runs(root, clip_dir, tmp_path_factory) -> dict[str, Path]:
    """The folders of runs on ImageNet: a method with prompts, and one that cannot leave classes out."""
    out = tmp_path_factory.mktemp("runs")
    arguments = ["train", "--data", "imagenet", "--root", root, "--shots", 2, "--model", f"local-dir:{clip_dir}"]
    for method, options in (("coop", ["--epochs", 2]), ("linear-probe", [])):
        words = [*arguments, *options, "--method", method, "--out", out / method]
        assert cli.run([str(word) for word in words]) == 0
    return {method: out / method for method in ("coop", "linear-probe")}


def test_a_run_on_imagenet(root, runs):
    """Two classes of one name are no reason to refuse it."""
    record, _ = load_run(runs["coop"])
    assert record["data"]["name"] == "imagenet"
    assert record["data"]["folder"] == str(root.resolve())
    assert record["data"]["class_names"] == list(IMAGENET.values())
    assert record["pictures"] == {"train": 8, "all": 8}
    assert record["details"]["all"]["pictures"][0] == "imagenet/images/val/n01440764/ILSVRC2012_val_0.JPEG"


@pytest.mark.parametrize(
    ("method", "name", "classes"),
    [
        ("coop", "imagenet", list(IMAGENET.values())),
        ("coop", "imagenetv2", list(IMAGENET.values())),
        ("coop", "imagenet_a", ["killer whale", "missile"]),
        ("coop", "imagenet_r", ["tench", "killer whale"]),
        ("linear-probe", "imagenet_r", list(IMAGENET.values())),
        ("coop", "oxford_pets", ["abyssinian", "american bulldog"]),
    ],
)
def test_evaluate_among_the_classes_of_the_set(root, runs, tmp_path, monkeypatch, method, name, classes):
    """As published; a method that knows its classes only all together is tested among them."""
    files = ["--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv"]
    assert run_here(monkeypatch, "evaluate", runs[method], "--data", name, "--root", root, "--trust", *files) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert [test["all"]["class_names"] for test in found["tests"].values()] == [classes] * 2
    with (tmp_path / "a.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == {"imagenet": 8, "imagenetv2": 8}.get(name, 4)
    # the class folder tells the class
    known = IMAGENET | dict(zip("0123", IMAGENET.values(), strict=True))
    for row in rows:
        folder = Path(row["picture"]).parent.name
        assert row["class"] == known.get(folder, "american bulldog" if "bulldog" in row["picture"] else "abyssinian")


def test_validation_pictures_of_the_split_are_no_test(root, clip_dir, tmp_path, monkeypatch):
    options = ["--shots", 2, "--epochs", 2, "--patience", 1, "--model", f"local-dir:{clip_dir}"]
    out = tmp_path / "run"
    command = ["train", "--data", "oxford_pets", "--root", root, "--out", out, *options]
    assert run_here(monkeypatch, *command) == 0
    record, _ = load_run(out)
    assert record["pictures"] == {"train": 4, "validation": 2, "all": 4}
    assert run_here(monkeypatch, *command, "--resume") == 0
    page = tmp_path / "page.html"
    assert run_here(monkeypatch, "report", out, "--out", page) == 0
    assert "oxford_pets/images/" in page.read_text()


def test_compare_with_other_domains(root, clip_dir, tmp_path, monkeypatch):
    sets = ["--data", "imagenet", "--root", root, "--also", "imagenet_a", "--also", "oxford_pets"]
    few = ["--methods", "zero-shot", "--shots", 1, "--seeds", 1, "--model", f"local-dir:{clip_dir}"]
    assert run_here(monkeypatch, "compare", *sets, *few, "--out", tmp_path) == 0
    text = next(tmp_path.glob("results*.json")).read_text()
    assert "imagenet_a" in text
    assert "oxford_pets" in text
