"""The HTML page says what the records say, whatever is in them, and holds everything that it shows."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from prograd_fast.report import page_pictures, write_page
from prograd_fast.report.html import Html, percent, tag
from prograd_fast.report.page_charts import Line, _ticks, line_chart
from prograd_fast.training.evaluation import Evaluation
from tests.cli.support import fail, run_here
from tests.report.page_records import HOSTILE, evaluation, grid_record, run_record, write


class Elements(HTMLParser):
    """The elements of a page, and its texts."""

    def __init__(self, page):
        super().__init__()
        self.found, self.texts = [], []
        self.feed(page)

    def handle_starttag(self, name, attributes):
        self.found.append((name, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, name):
        return [attributes for found, attributes in self.found if found == name]


def page_of(tmp_path, *records):
    folders = [write(tmp_path / f"folder{i}", record) for i, record in enumerate(records)]
    write_page(folders, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_page_tells_accuracies_beside_zero_shot_with_intervals(tmp_path):
    text = " ".join(Elements(page_of(tmp_path, run_record({"all": evaluation(["a", "b", "c"], 30)}))).texts)
    assert "ProGrad on pictures <i>" in text
    assert re.search(r"all 33\.3 66\.7 \+33\.3 48\.8 to 80\.8 30", text)  # Wilson's interval of 20 of 30
    assert "2026-01-31 12:00 UTC" in text
    assert "64 pictures of 3 classes" in text
    for words in ("balanced accuracy", "macro F1", "calibration error", "10 of 30 pictures"):
        assert words in text


def test_folds_have_a_row_with_their_mean(tmp_path):
    for k, wrong in enumerate((3, 4, 6)):  # one of so many pictures is wrong
        write(
            tmp_path / "mine" / f"fold{k}",
            run_record({"all": evaluation(["a", "b"], 12)}) | {"accuracy": {"all": 1 - 1 / wrong}},
        )
    other = write(tmp_path / "other", run_record({"all": evaluation(["a", "b"], 12)}))
    write_page([tmp_path / "mine", other], tmp_path / "report.html")
    text = " ".join(Elements((tmp_path / "report.html").read_text(encoding="utf-8")).texts)
    assert re.search(r"mine, mean ± standard deviation of 3 folds ProGrad pictures <i> \d+ 75\.0 ± 8\.3", text)
    assert text.count("mean ± standard deviation") == 1


@pytest.mark.parametrize("hostile", HOSTILE)
def test_names_of_strangers_stay_text(hostile, tmp_path):
    record = run_record({hostile: evaluation([hostile, "b"], 12, [f"{hostile}{i}.png" for i in range(12)])})
    record |= {"settings": {hostile: hostile}, "versions": {hostile: hostile}}
    record["model"]["name"] = record["data"]["name"] = hostile
    page = page_of(tmp_path, record, record, {**grid_record(), "data": record["data"]})
    elements = Elements(page)
    assert len(elements.all("script")) == len(elements.all("style")) == 1
    assert all(image["src"].startswith("data:image/") for image in elements.all("img"))
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]
    assert "‮" not in page
    shown = hostile.replace("‮", "\\u202e")
    assert sum(shown in text for text in elements.texts) > 10


def test_a_page_has_no_address_and_forbids_requests(tmp_path):
    page = page_of(tmp_path, run_record({"all": evaluation(["a", "b"], 9)}), grid_record())
    assert not re.findall(r"(?:https?:|//|@import|url\()[^ ]", re.sub(r"data:[^\"]*|// [^\n]*", "", page))
    (policy,) = (meta["content"] for meta in Elements(page).all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_wrong_pictures_are_shown_from_the_folder_where_they_still_are(tmp_path, shapes_dir):
    files = sorted(file.relative_to(shapes_dir).as_posix() for file in shapes_dir.rglob("*.png"))[:30]
    files[0], files[3] = "gone.png", "../../etc/passwd"
    record = run_record({"all": evaluation(["a", "b", "c"], 30, files)}, folder=shapes_dir)
    page = Elements(page_of(tmp_path, record))
    images = [image["src"] for image in page.all("img")]
    assert len(images) == 8
    assert all(source.startswith("data:image/jpeg;base64,") for source in images)
    assert max(map(len, images)) < 20_000
    assert any("2 of them are no longer where they were" in text for text in page.texts)


def test_no_picture_outside_of_the_folder_is_shown(tmp_path, shapes_dir):
    inside = tmp_path / "pictures"
    inside.mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    names = ["../secret.png", str(tmp_path / "secret.png"), "link.png", "a\0b", "x" * 5000, "."]
    record = run_record({"all": evaluation(["a", "b"], 18, names * 3)}, folder=inside)
    assert not Elements(page_of(tmp_path, record)).all("img")


def test_thumbnails_of_a_page_are_bounded(tmp_path, monkeypatch, shapes_dir):
    monkeypatch.setattr(page_pictures, "MOST", 5)
    files = sorted(file.relative_to(shapes_dir).as_posix() for file in shapes_dir.rglob("*.png"))
    record = run_record({"all": evaluation(["a", "b", "c"], len(files), files)}, folder=shapes_dir)
    page = Elements(page_of(tmp_path, record, record))
    assert len(page.all("img")) == 5


def test_pictures_of_an_embedded_set_are_shown(tmp_path):
    record = run_record({"all": evaluation(["a", "b"], 9, ["0", "1", "2", "3", "99999999", "-1", "x", "7", "8"])})
    record["data"]["name"] = "clipart"
    assert len(Elements(page_of(tmp_path, record)).all("img")) == 2  # 0 and 3; 99999999 is beyond the set's end


@pytest.mark.parametrize("without", [("details",), ("details", "steps"), ("zero_shot_accuracy", "details", "versions")])
def test_older_records_give_a_page_that_says_what_is_missing(without, tmp_path):
    record = run_record({"all": evaluation(["a", "b"], 9)})
    for key in without:
        del record[key]
    text = " ".join(Elements(page_of(tmp_path, record)).texts)
    assert "has no test pictures one by one" in text
    assert ("has no steps to draw" in text) == ("steps" in without)


def test_every_picture_right_or_a_single_class(tmp_path):
    all_right = evaluation(["a", "b", "c"], 9)
    right = Evaluation(
        all_right.class_names,
        all_right.predicted,
        all_right.predicted,
        all_right.probabilities,
        all_right.top,
        all_right.pictures,
    )
    text = " ".join(
        Elements(page_of(tmp_path, run_record({"all": right}), run_record({"all": evaluation(["a"], 4)}))).texts
    )
    assert "every picture was recognised" in text
    assert "No picture was taken for another class" in text


def test_a_thousand_classes_are_drawn_and_their_mistakes_listed(tmp_path):
    names = [f"class {i}" for i in range(1000)]
    page = page_of(tmp_path, run_record({"all": evaluation(names, 5000)}))
    elements = Elements(page)
    (cells,) = elements.all("img")
    assert cells["class"] == "cells"
    assert not [table for table in elements.all("table") if table.get("class") == "matrix"]
    assert any("the 50 most frequent of" in text for text in elements.texts)
    assert len(page) < 3_000_000


def test_a_grid_gives_its_table_and_the_pictures_of_compare(tmp_path):
    folder = write(tmp_path / "grid", grid_record())
    Image.new("RGB", (30, 20)).save(folder / "shots.png")
    (folder / "plane.png").write_text("<svg onload=alert(1)>")
    write_page([folder], tmp_path / "report.html")
    page = Elements((tmp_path / "report.html").read_text())
    assert [image["alt"] for image in page.all("img")] == ["Accuracy against shots"]
    assert "62.0 ± 12.7 (1.4)" in page.texts  # CoOp, one shot: 61 and 63 %


def test_folds_are_runs_of_their_own_in_their_order(tmp_path):
    for k in (10, 2, 0):
        write(tmp_path / "folds" / f"fold{k}", run_record({"all": evaluation(["a", "b"], 9)}))
    (tmp_path / "folds" / "summary.json").write_text("{}")
    write_page([tmp_path / "folds"], tmp_path / "report.html")
    links = Elements((tmp_path / "report.html").read_text()).all("a")
    text = (tmp_path / "report.html").read_text()
    assert len(links) == 3
    assert text.index(">folds/fold0<") < text.index(">folds/fold2<") < text.index(">folds/fold10<")


def test_pictures_that_were_left_out_are_told(tmp_path):
    record = run_record({"all": evaluation(["a", "b"], 9)}) | {"left_out": {"all": 3, "validation": 0}}
    text = " ".join(Elements(page_of(tmp_path, record)).texts)
    assert "Test pictures that were learned from are left out: 3 of all." in text


DAMAGES = {
    "no JSON": lambda record: "{",
    "a list": lambda record: [1],
    "accuracy is text": lambda record: record | {"accuracy": {"all": "<b>"}},
    "accuracy is a list": lambda record: record | {"accuracy": [1]},
    "no seed": lambda record: {key: value for key, value in record.items() if key != "seed"},
    "date": lambda record: record | {"created": "<b>yesterday"},
    "steps": lambda record: record | {"steps": {"task_loss": ["a"]}},
    "steps are a number": lambda record: record | {"steps": 3},
    "details": lambda record: record | {"details": {"all": {"class_names": ["a"]}}},
    "labels out of range": lambda record: (
        record | {"details": {"all": {**record["details"]["all"], "labels": [9] * 9}}}
    ),
    "pictures": lambda record: record | {"pictures": {"train": 1, "all": "many"}},
    "no pictures": lambda record: record | {"pictures": {"train": 1, "all": 0, "x": {}}, "seconds": {"a": "b"}},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_records_are_refused_in_a_line_that_names_the_file(damage, tmp_path, monkeypatch, capfd):
    record = damage(run_record({"all": evaluation(["a", "b"], 9)}))
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "record.json").write_text(record if isinstance(record, str) else json.dumps(record))
    line = fail(capfd, monkeypatch, "report", folder, "--out", tmp_path / "report.html")
    assert f"{folder / 'record.json'} cannot be used: " in line
    assert not (tmp_path / "report.html").exists()


def test_a_folder_of_neither_kind_and_an_out_that_is_a_folder_are_refused(tmp_path, monkeypatch, capfd):
    line = fail(capfd, monkeypatch, "report", tmp_path, "--out", tmp_path / "report.html")
    assert "has neither record.json nor results.json" in line
    line = fail(capfd, monkeypatch, "report", tmp_path / "none", "--out", tmp_path / "report.html")
    assert "has neither record.json nor results.json" in line
    folder = write(tmp_path / "run", run_record({"all": evaluation(["a", "b"], 9)}))
    assert "is a folder" in fail(capfd, monkeypatch, "report", folder, "--out", tmp_path)


def test_train_and_report_from_end_to_end(tmp_path, shapes_dir, clip_dir, monkeypatch, capfd):
    arguments = ["--data", shapes_dir, "--shots", 2, "--epochs", 3, "--model", f"local-dir:{clip_dir}"]
    assert run_here(monkeypatch, "train", *arguments, "--out", tmp_path / "run") == 0
    assert run_here(monkeypatch, "report", tmp_path / "run", "--out", tmp_path / "new" / "report.html") == 0
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    page = Elements((tmp_path / "new" / "report.html").read_text())
    assert f"{100 * record['accuracy']['all']:.1f}" in page.texts
    wrong = len(Evaluation.from_record(record["details"]["all"]).wrong())
    assert len(page.all("img")) >= min(wrong, 24)
    assert "Open it in a browser" in capfd.readouterr().out


def test_escaping_is_by_construction():
    assert tag("a", "<", Html("<b></b>"), None, href='"', hidden=True, title=None) == (
        '<a href="&quot;" hidden>&lt;<b></b>None</a>'
    )
    assert percent(float("nan")).shown == "–"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 1), (0, 0), (3, 3), (1e-9, 2e-9), (-5e8, 7e8), (0.2, 2.74)])
def test_ticks_are_round_and_go_around_the_values(low, high):
    ticks = _ticks(low, high)
    assert 2 <= len(ticks) <= 9 or low == high
    assert ticks[0] <= low + 1e-3 * (high - low)
    assert ticks[-1] >= high
    assert np.allclose(np.diff(ticks), np.diff(ticks)[:1]) if len(ticks) > 1 else True


def test_lines_of_any_length_are_drawn_with_a_bounded_number_of_points():
    assert line_chart("t", "x", [Line("a", []), Line("b", [None, None])]) == ""
    for n in (1, 2, 100_000):
        chart = line_chart("t", "x", [Line("a", [0.5] * n)])
        assert chart.count(",") <= 400
        assert "nan" not in chart
