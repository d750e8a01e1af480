"""The evaluation of a run stays readable at 80 columns, however many classes there are; files have the rest."""

import csv
import io
import json

import numpy as np
import pytest
from rich.console import Console

from prograd_fast.files.writing import write_csv
from prograd_fast.report import evaluation_record, evaluation_rows, report_evaluation
from prograd_fast.training import Evaluation, RunEvaluation
from tests.training.test_evaluation import certain, random_evaluation

LONG = "pneumonoultramicroscopicsilicovolcanoconiosis_of_the_lungs_and_other_places_beside"


def with_names(evaluation: Evaluation, name: str) -> Evaluation:
    """The same with other names of classes and pictures."""
    names = tuple(f"{name} {i}" for i in range(len(evaluation.class_names)))
    pictures = tuple(f"{name}/{i}.png" for i in range(len(evaluation)))
    found = {field: getattr(evaluation, field) for field in ("labels", "predicted", "probabilities", "top")}
    return Evaluation(class_names=names, pictures=pictures, **found)


def run_of(*evaluations: Evaluation) -> RunEvaluation:
    parts = dict(zip(["all", "openmoji/all", "fluent-hc/all"], evaluations, strict=False))
    return RunEvaluation("prograd", {"zero-shot": parts, "prograd": parts}, 0, evaluations[0].class_names)


def printed(found: RunEvaluation) -> str:
    stream = io.StringIO()
    report_evaluation(found, Console(file=stream, width=80))
    return stream.getvalue()


@pytest.mark.parametrize("name", ["class", LONG, "\U0001f600\u4e2d\u6587", "[red]", "\x1b[2J"])
@pytest.mark.parametrize("n_classes", [1, 3, 44, 1000])
def test_nothing_is_cut_off_at_80_columns(name, n_classes):
    evaluation = with_names(random_evaluation(2 * n_classes, n_classes), name)
    text = printed(run_of(evaluation))
    assert "\u2026" not in text
    assert "\x1b" not in text
    assert len(text.splitlines()) < 260  # long names take several lines; there are 30 rows at most
    assert f"{100 * evaluation.accuracy:.1f}" in text
    if name == "class":
        assert max(map(len, text.splitlines())) <= 80
        assert len(text.splitlines()) <= 60


def test_the_rest_is_counted():
    text = printed(run_of(random_evaluation(3000, 1000)))
    evaluation = random_evaluation(3000, 1000)
    classes, pairs, wrong = sum(row.n > 0 for row in evaluation.per_class()), evaluation.confused(), evaluation.wrong()
    assert f"{classes - 10} more classes are in the files of --csv and --json." in text
    assert f"{len(pairs) - 10} more pairs of classes are" in text
    assert f"{len(wrong) - 10} more pictures are" in text


def test_the_worst_come_first():
    evaluation = random_evaluation(300, 6)
    text = printed(run_of(evaluation))
    worst = min(evaluation.per_class(), key=lambda row: row.accuracy)
    first = next(
        line for line in text[text.index("least first") :].splitlines() if "class " in line and "%" not in line
    )
    assert worst.name in first
    for number in (worst.right, worst.n, f"{100 * worst.accuracy:.1f}", f"{100 * worst.low:.1f} to"):
        assert str(number) in first
    pair = evaluation.confused()[0]
    first = text[text.index("most frequent mistakes first") :].splitlines()[4]
    assert f"class {pair.label}" in first
    assert f"class {pair.predicted}" in first
    assert str(pair.n) in first
    assert evaluation.pictures[evaluation.wrong()[0]] in text[text.index("most confident first") :].splitlines()[4]


def test_no_mistake():
    assert "No picture was mistaken." in printed(run_of(certain([0.9, 0.8], [True, True])))


def test_measures_are_those_of_the_evaluation():
    evaluation = random_evaluation(300, 6)
    text = printed(run_of(evaluation, random_evaluation(50, 6, 1)))
    for name in ("balanced_accuracy", "macro_precision", "macro_f1"):
        assert f"{100 * getattr(evaluation, name):.1f}" in text
    assert f"{100 * evaluation.ece():.1f}" in text
    low, high = evaluation.interval
    assert f"{100 * low:.1f} to {100 * high:.1f}" in text
    assert "openmoji/all" in text


def test_one_row_a_picture(tmp_path):
    evaluation = with_names(random_evaluation(20, 3), 'a "quoted", \udcff name\n')
    write_csv(tmp_path / "a.csv", evaluation_rows(run_of(evaluation, evaluation)))
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    for i, row in enumerate(rows[:20]):
        assert row["test"] == "all"
        assert row["picture"] == evaluation.pictures[i].replace("\udcff", "\\udcff")
        assert row["class"] == evaluation.class_names[evaluation.labels[i]].replace("\udcff", "\\udcff")
        assert row["class_1"] == evaluation.class_names[evaluation.predicted[i]].replace("\udcff", "\\udcff")
        assert row["right"] == str(int(evaluation.right[i]))
        assert float(row["probability_2"]) == pytest.approx(evaluation.probabilities[i, 1], rel=1e-5)


def test_json_has_everything():
    evaluation = random_evaluation(200, 50)
    record = json.loads(json.dumps(evaluation_record(run_of(evaluation)), allow_nan=False))
    found = record["tests"]["prograd"]["all"]
    assert np.array_equal(found["confusion"], evaluation.confusion())
    assert found["wrong"] == [evaluation.pictures[i] for i in evaluation.wrong()]
    assert [row["right"] for row in found["classes"]] == [row.right for row in evaluation.per_class()]
    assert found["ece"] == evaluation.ece()
    assert Evaluation.from_record(found).accuracy == evaluation.accuracy == found["accuracy"]
