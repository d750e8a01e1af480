"""`predict` takes files, folders and patterns, goes on past bad pictures, and writes what it says."""

import csv
import html
import json
import re
import shutil
from pathlib import Path

import pytest

from prograd_fast import cli
from prograd_fast.terminal import output
from tests.cli.support import fail, run_here
from tests.conftest import SHAPES, draw

NAMES = sorted(name.replace("_", " ") for name in SHAPES)


@pytest.fixture(scope="module")
def runs(shapes_dir, clip_dir, tmp_path_factory) -> dict[str, Path]:
    """The folders of a run of a method with prompts, and of one that cannot name classes; tests only read them."""
    found = {}
    for method, options in (("coop", ["--epochs", 2]), ("linear-probe", [])):
        found[method] = tmp_path_factory.mktemp("predict") / method
        arguments = ["--data", shapes_dir, "--shots", 2, "--model", f"local-dir:{clip_dir}", "--method", method]
        assert cli.run([str(word) for word in ("train", *arguments, *options, "--out", found[method])]) == 0
    return found


@pytest.fixture
def run(runs) -> Path:
    return runs["coop"]


@pytest.fixture
def pictures(tmp_path, monkeypatch) -> Path:
    """The folder that commands run in, with pictures in folders of their own."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(SHAPES):
        folder = tmp_path / "photos" / ("inner" if i % 2 else "")
        folder.mkdir(parents=True, exist_ok=True)
        draw(name, i).save(folder / f"{name}.png")
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    draw("black_dot", 7).save(tmp_path / "one[1].png")
    return tmp_path


def predicted(file: Path) -> dict[str, dict[str, str]]:
    """The rows of --csv by picture."""
    with file.open(encoding="utf-8", newline="") as opened:
        return {row["picture"]: row for row in csv.DictReader(opened)}


FILES = ["photos/red_circle.png", "photos/green_bar.png", "photos/inner/blue_square.png", "photos/inner/black_dot.png"]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["photos/red_circle.png"], FILES[:1]),
        (["photos"], FILES),
        (["photos/"], FILES),
        (["photos/*.png"], FILES[:2]),
        (["photos/**/*.png"], FILES),
        (["photos/inn*"], FILES[2:]),
        (["photos/*_[bc]*.png"], FILES[:2]),
        (["photos/green_bar.png", "photos", "photos/*.png"], [FILES[1], FILES[0], *FILES[2:]]),
        (["one[1].png"], ["one[1].png"]),  # a name, though it looks like a pattern
        (["photos/inner", "one[1].png"], [*FILES[2:], "one[1].png"]),
    ],
)
def test_files_folders_and_patterns(run, pictures, monkeypatch, given, found):
    assert run_here(monkeypatch, "predict", run, *given, "--trust", "--csv", "out.csv") == 0
    assert sorted(predicted(Path("out.csv"))) == sorted(found)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("missing.png", "No such file"),
        ("nothing*.jpg", "no file or folder matches"),
        ("photos/notes.txt", "not a known picture format"),
        ("empty", "no picture"),
        ("\x1b[31m.png", "no file or folder matches"),
        ("long" * 100, "File name too long"),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_bad_pictures_are_told_at_the_end(run, pictures, capfd, monkeypatch, bad, reason, place):
    Path("empty").mkdir()
    given = ["photos"]
    given.insert(place, bad)
    files = ["--csv", "out/a.csv", "--json", "out/a.json", "--html", "out/a.html"]
    assert run_here(monkeypatch, "predict", run, *given, "--trust", *files) == 3
    said = capfd.readouterr()
    assert reason in said.err
    assert said.err.rstrip().endswith("1 cannot be read; 4 were predicted.")
    assert "\x1b[31m" not in said.err + said.out
    rows = predicted(Path("out/a.csv"))
    assert set(rows) == {*FILES, bad}
    assert reason in rows[bad]["error"]
    assert [row["error"] for row in rows.values()].count("") == 4
    record = json.loads(Path("out/a.json").read_text())
    assert {entry["picture"] for entry in record["pictures"]} == set(FILES)
    assert [entry["picture"] for entry in record["unreadable"]] == [bad]
    assert "Pictures that cannot be read: 1" in Path("out/a.html").read_text()


def test_nothing_that_can_be_read(run, pictures, capfd, monkeypatch):
    assert run_here(monkeypatch, "predict", run, "x.png", "y.png", "--trust", "--csv", "out.csv") == 3
    assert "2 cannot be read; 0 were predicted." in capfd.readouterr().err
    assert set(predicted(Path("out.csv"))) == {"x.png", "y.png"}


def test_many_bad_pictures_are_counted(run, pictures, capfd, monkeypatch):
    names = [f"missing{i:02}.png" for i in range(30)]
    assert run_here(monkeypatch, "predict", run, *names, "photos", "--trust", "--json", "out.json") == 3
    said = capfd.readouterr().err
    assert said.count("No such file") == 10
    assert "30 cannot be read, of which 10 are listed; 4 were predicted." in said
    assert len(json.loads(Path("out.json").read_text())["unreadable"]) == 30


def test_the_files_agree_with_each_other_and_with_the_terminal(run, pictures, capfd, monkeypatch):
    monkeypatch.setattr(output.console, "_width", None)  # COLUMNS of when it was made, which pytest-xdist sets
    monkeypatch.setenv("COLUMNS", "200")
    files = ["--csv", "a.csv", "--json", "a.json", "--html", "a.html"]
    assert run_here(monkeypatch, "predict", run, "photos", "--trust", "--top", 3, *files) == 0
    printed = capfd.readouterr().out
    record, rows = json.loads(Path("a.json").read_text()), predicted(Path("a.csv"))
    assert record["class_names"] == NAMES
    page = html.unescape(Path("a.html").read_text())
    for entry in record["pictures"]:
        row = rows[entry["picture"]]
        line = next(line for line in printed.splitlines() if entry["picture"] in line)
        assert len(entry["classes"]) == 3
        for rank, found in enumerate(entry["classes"], start=1):
            assert row[f"class_{rank}"] == found["name"]
            assert float(row[f"probability_{rank}"]) == pytest.approx(found["probability"], rel=1e-5)
            assert f"{found['name']} {100 * found['probability']:.1f}" in line
            assert f"<li>{found['name']} {100 * found['probability']:.1f} %</li>" in page
    assert page.count('<img src="data:image/jpeg;base64,') == 4


def test_the_page_asks_for_nothing_outside(run, pictures, monkeypatch):
    shutil.copy("photos/red_circle.png", "photos/<script>alert(1)<&>.png")
    assert run_here(monkeypatch, "predict", run, "photos", "--trust", "--html", "a.html") == 0
    page = Path("a.html").read_text()
    assert page.count("<script") == 1  # the page's own
    assert "&lt;script&gt;" in page
    assert all(url.startswith("data:") for url in re.findall(r"(?:src|href)=.(.{5})", page))
    assert not re.search(r"https?:", page)


def test_new_names(run, pictures, capfd, monkeypatch):
    Path("names.txt").write_text("kite\nred circle\na door\n")
    arguments = ["predict", run, "photos", "--trust", "--classes", "names.txt"]
    assert run_here(monkeypatch, *arguments, "--json", "a.json") == 0
    assert "Most likely of 3 classes" in capfd.readouterr().out
    record = json.loads(Path("a.json").read_text())
    assert record["class_names"] == ["kite", "red circle", "a door"]
    assert all(len(entry["classes"]) == 3 for entry in record["pictures"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("kite", "expected at least two"),
        ("kite\nkite", "'kite' and 'kite' are the same words to the model"),
        ("Kite\nkite", "'Kite' and 'kite' are the same words to the model"),
        (f"kite\n{'long ' * 200}", "too long"),
    ],
)
def test_names_that_cannot_be_used(run, pictures, capfd, monkeypatch, content, message):
    Path("names.txt").write_text(content, encoding="utf-8")
    line = fail(capfd, monkeypatch, "predict", run, "photos", "--trust", "--classes", "names.txt")
    assert re.search(message, line), line


def test_new_names_for_a_method_that_has_none(runs, pictures, capfd, monkeypatch):
    Path("names.txt").write_text("kite\ndoor\n")
    line = fail(capfd, monkeypatch, "predict", runs["linear-probe"], "photos", "--trust", "--classes", "names.txt")
    assert "linear probe cannot name classes that it was not trained on" in line


def test_a_run_moves_to_another_machine(run, pictures, clip_dir, capfd, monkeypatch):
    """The model lies elsewhere there; other weights are refused."""
    shutil.copytree(run, "run")
    shutil.copytree(clip_dir, "weights")
    model = ["--model", "local-dir:weights"]
    assert run_here(monkeypatch, "predict", run, "photos", "--trust", "--csv", "here.csv") == 0
    assert run_here(monkeypatch, "predict", "run", "photos", *model, "--csv", "there.csv") == 0
    assert Path("here.csv").read_text() == Path("there.csv").read_text()
    for command in (["predict", "run", "photos"], ["evaluate", "run", "--data", "clipart", "--no-cache"]):
        assert "other weights" in fail(capfd, monkeypatch, *command, "--model", "emoji-lite")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--csv", "photos"], "cannot write photos: a folder of this name"),
        (["--csv", "one[1].png/x.csv"], "cannot write to one.1..png"),
        (["--csv", "a.txt", "--json", "a.txt"], "--csv and --json: expected different files"),
        (["--csv", "a.txt", "--html", "photos/../a.txt"], "--csv and --html: expected different files"),
        (["--classes", "nowhere.txt"], "cannot read class names from nowhere.txt: No such file"),
        (["--top", "0"], "'--top'"),
    ],
)
def test_mistakes_are_told_before_any_work(run, pictures, capfd, monkeypatch, options, message):
    before = sorted(Path().rglob("*"))
    assert re.search(message, fail(capfd, monkeypatch, "predict", run, "photos", "--trust", *options))
    assert sorted(Path().rglob("*")) == before


def test_files_are_replaced_whole(run, pictures, capfd, monkeypatch):
    Path("a.csv").write_text("before")

    def disk_full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", disk_full)
        line = fail(capfd, patch, "predict", run, "photos", "--trust", "--csv", "a.csv")
    assert "cannot write a.csv: No space left on device" in line
    assert Path("a.csv").read_text() == "before"
    assert not list(Path().glob(".*"))


def test_help_tells_the_exit_codes(capfd, monkeypatch):
    assert run_here(monkeypatch, "predict", "--help") == 0
    text = " ".join(capfd.readouterr().out.split())
    assert (
        "Exit code: 0 if all pictures were read, 3 if some were not, 2 for wrong input, 1 for any other failure" in text
    )
