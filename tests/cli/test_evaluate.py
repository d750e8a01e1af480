"""`evaluate` tests a run on all pictures of a new folder, never on those that it has learned from, and says so."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest

from prograd_fast import cli
from tests.cli.support import fail, run_here
from tests.conftest import SHAPES, draw, draw_shapes


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the pictures that runs learn from, and their runs; tests only read it."""
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def runs(folder, clip_dir) -> dict[str, Path]:
    """The folders of a run of a method with prompts, and of one that cannot name classes."""
    draw_shapes(folder / "photos")
    arguments = ["train", "--data", folder / "photos", "--shots", 3, "--model", f"local-dir:{clip_dir}"]
    for method, options in (("prograd", ["--epochs", 2]), ("linear-probe", [])):
        out = ["--method", method, "--out", folder / method]
        assert cli.run([str(word) for word in (*arguments, *options, *out)]) == 0
    return {method: folder / method for method in ("prograd", "linear-probe")}


@pytest.fixture
def run(runs) -> Path:
    return runs["prograd"]


def more_photos(folder: Path, names: dict[str, str], per_class: int = 2) -> Path:
    """Pictures that no run has seen: class and the shape that it shows."""
    for number, (name, shape) in enumerate(names.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            draw(shape, 5000 + 100 * number + i).save(folder / name / f"new{i}.png")
    return folder


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


SAME = {name: name for name in SHAPES}


def evaluate(monkeypatch, run: Path, data: Path | str, out: Path) -> tuple[list[dict[str, str]], dict]:
    """What --csv and --json hold."""
    files = ["--csv", out / "a.csv", "--json", out / "a.json"]
    assert run_here(monkeypatch, "evaluate", run, "--data", data, "--trust", *files) == 0
    return rows(out / "a.csv"), json.loads((out / "a.json").read_text())


def test_the_accuracy_on_the_own_test_pictures_is_that_of_train(run, folder, tmp_path, capfd, monkeypatch):
    found, record = evaluate(monkeypatch, run, folder / "photos", tmp_path)
    trained = json.loads((run / "record.json").read_text())
    assert record["tests"]["prograd"]["all"]["accuracy"] == trained["accuracy"]["all"]
    assert record["tests"]["zero-shot"]["all"]["accuracy"] == trained["zero_shot_accuracy"]["all"]
    assert len(found) == trained["pictures"]["all"]
    said = capfd.readouterr().out
    assert f"{100 * trained['accuracy']['all']:.1f}" in said
    assert "Left out" not in said
    assert trained["details"]["all"]["pictures"] == record["tests"]["prograd"]["all"]["pictures"]


@pytest.mark.parametrize("added", [1, 5])
def test_photos_that_are_added_do_not_bring_learned_ones_into_the_test(run, folder, tmp_path, monkeypatch, added):
    """The fault of old: one photo more, and a run was tested on what it had learned."""
    trained = json.loads((run / "record.json").read_text())
    data = shutil.copytree(folder / "photos", tmp_path / "photos")
    more_photos(data, SAME, added)
    found, record = evaluate(monkeypatch, run, data, tmp_path)
    from prograd_fast.data import load

    pictures = load(data)
    digests = {file.relative_to(data).as_posix(): pictures.digest(i)[:32] for i, file in enumerate(pictures.source)}
    assert not {digests[row["picture"]] for row in found} & set(trained["learned_from"])
    assert len(found) + record["left_out"] == (pictures.split == "test").sum()


@pytest.mark.parametrize("names", [SAME, {"red_circle": "red_circle"}], ids=["all", "one class"])
@pytest.mark.parametrize("method", ["prograd", "linear-probe"])
@pytest.mark.parametrize("per_class", [1, 3])
def test_all_pictures_of_a_new_folder_are_tested(runs, tmp_path, capfd, monkeypatch, names, method, per_class):
    data = more_photos(tmp_path / "new", names, per_class)
    found, _ = evaluate(monkeypatch, runs[method], data, tmp_path)
    assert len(found) == len(names) * per_class
    said = capfd.readouterr().out
    assert f"Accuracy in % of {len(found)} pictures of {data} among 4 classes (25.0 by guessing):" in said
    assert "New to the run" not in said


def test_learned_pictures_in_a_new_folder_are_left_out(run, folder, tmp_path, capfd, monkeypatch):
    data = more_photos(tmp_path / "new", {"red_circle": "red_circle"})
    shutil.copytree(folder / "photos" / "red_circle", data / "red_circle" / "copies")  # one class: it has no split
    found, record = evaluate(monkeypatch, run, data, tmp_path)
    assert record["left_out"] == 3
    assert len(found) == 2 + 10 - 3
    assert "Left out 3 pictures that the run has learned from." in capfd.readouterr().out


def test_new_classes_are_named(runs, tmp_path, capfd, monkeypatch):
    data = more_photos(tmp_path / "new", {"kite": "blue_square", "red_circle": "red_circle", "door": "green_bar"})
    found, _ = evaluate(monkeypatch, runs["prograd"], data, tmp_path)
    assert {row["class"] for row in found} == {"kite", "red circle", "door"}
    assert "New to the run are 2 of the 3 classes: door, kite" in capfd.readouterr().out
    line = fail(capfd, monkeypatch, "evaluate", runs["linear-probe"], "--data", data, "--trust")
    assert "new has the class 'door', which linear probe cannot name" in line


@pytest.mark.parametrize("names", [["Dog", "dog"], ["a  b", "a b"], ["a&amp;b", "a&b"]])
def test_classes_that_the_model_reads_alike_are_refused(run, tmp_path, capfd, monkeypatch, names):
    data = more_photos(tmp_path / "new", dict.fromkeys(names, "red_circle"))
    line = fail(capfd, monkeypatch, "evaluate", run, "--data", data, "--trust")
    assert "are the same words to the model" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--csv", "OUT"], "a folder of this name is there; choose another --csv"),
        (["--csv", "OUT/a", "--json", "OUT/a"], "expected different files"),
        (["--json", "FILE/a.json"], "is not a folder"),
    ],
)
def test_mistakes_are_told_before_any_work(run, folder, tmp_path, capfd, monkeypatch, options, message):
    (tmp_path / "file").touch()
    given = [word.replace("OUT", str(tmp_path)).replace("FILE", str(tmp_path / "file")) for word in options]
    assert re.search(message, fail(capfd, monkeypatch, "evaluate", run, "--data", folder / "photos", *given))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_embedded_sets_are_tested_as_published(run, tmp_path, monkeypatch):
    found, record = evaluate(monkeypatch, run, "clipart", tmp_path)
    from prograd_fast.data import load

    pictures = load("clipart")
    assert [int(row["picture"]) for row in found] == [i for i, split in enumerate(pictures.split) if split == "test"]
    assert record["left_out"] == 0


def test_pictures_that_were_saved_again_are_told(run, folder, tmp_path, capfd, monkeypatch):
    """A rating or a caption changes a file, which is then not known as one that was learned from."""
    shutil.copytree(folder / "photos", tmp_path / "photos")
    for file in (tmp_path / "photos").glob("*/*.png"):
        file.write_bytes(file.read_bytes() + b"rated")
    evaluate(monkeypatch, run, tmp_path / "photos", tmp_path)
    learned = 3 * len(SHAPES)
    assert f"{learned} of the {learned} pictures that the run learned from are not in" in capfd.readouterr().out


def test_pictures_in_two_classes_are_told(run, tmp_path, capfd, monkeypatch):
    more_photos(tmp_path / "set", SAME)
    shutil.copy(tmp_path / "set/red_circle/new0.png", tmp_path / "set/blue_square/other.png")
    evaluate(monkeypatch, run, tmp_path / "set", tmp_path)
    assert re.search(
        r"set: one picture is in more than one class, such as .*blue_square/other.png and .*new0.png",
        capfd.readouterr().err,
    )


def test_a_folder_with_the_name_of_an_embedded_set(run, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more_photos(tmp_path / "clipart", SAME)
    assert run_here(monkeypatch, "evaluate", run, "--data", "clipart", "--trust") == 0
    assert "clipart is the embedded set; for the folder of this name give ./clipart" in capfd.readouterr().err
