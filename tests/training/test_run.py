"""A run measures what its method can name, and its record tells it in strict JSON."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import prograd_fast as pf
from prograd_fast.data import load
from prograd_fast.methods import CoOp, LinearProbe, ProGradCoOp, Task, ZeroShot
from prograd_fast.training import encode_pictures, make_plan, run_method, train_method, write_json
from prograd_fast.training.evaluate import accuracies, accuracy, evaluate_parts, harmonic_mean, picture_names, rank
from prograd_fast.training.protocol import Part
from prograd_fast.training.transfer import TransferTest
from tests.training.support import NoBar, train_once

METHODS = (ZeroShot(), LinearProbe(), CoOp(epochs=3), ProGradCoOp(epochs=4))


def test_accuracy_and_harmonic_mean():
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert accuracy(lambda _: scores, torch.zeros(3, 2), torch.tensor([0, 1, 1])) == 2 / 3
    assert harmonic_mean(0.5, 0.25) == 1 / 3
    assert harmonic_mean(0.5, 0.0) == 0.0


def test_the_first_of_equal_classes_wins():
    scores = torch.tensor([[1.0, 2.0, 2.0, 0.0], [3.0, 3.0, 3.0, 3.0], [0.0, 0.0, 1.0, 1.0]])
    top, probabilities = rank(lambda _: scores, torch.zeros(3, 2), 3)
    assert top.tolist() == [[1, 2, 0], [0, 1, 2], [2, 3, 0]]
    torch.testing.assert_close(torch.from_numpy(probabilities), scores.softmax(1).gather(1, torch.from_numpy(top)))
    assert rank(lambda _: scores, torch.zeros(3, 2)).top.shape == (3, 4)


def test_the_evaluation_of_a_run_names_its_pictures(clip, shapes):
    plan = make_plan(shapes, shots=2, seed=0, partition=None)
    run = run_method(CoOp(epochs=3), clip, encode_pictures(clip, shapes, plan.rows), plan)
    assert run.accuracy == {name: evaluation.accuracy for name, evaluation in run.tests.items()}
    found, part = run.tests["all"], plan.tests["all"]
    assert found.class_names == shapes.class_names
    assert found.labels.tolist() == shapes.labels[part.rows].tolist()
    files = [f"{shapes.source[row].parent.name}/{shapes.source[row].name}" for row in part.rows.tolist()]
    assert list(found.pictures) == files
    scores = run.learner.scores(shapes.class_names)(encode_pictures(clip, shapes, part.rows).values)
    assert found.predicted.tolist() == scores.argmax(1).tolist()
    torch.testing.assert_close(torch.from_numpy(found.probabilities), scores.softmax(1).sort(1, True).values)


@pytest.mark.parametrize("how", ["absolute", "relative", "here", "linked", "dots"])
def test_pictures_are_called_by_their_place_in_the_folder(shapes_dir, tmp_path, monkeypatch, how):
    (tmp_path / "link").symlink_to(shapes_dir)
    monkeypatch.chdir(shapes_dir if how == "here" else shapes_dir.parent)
    folder = {"relative": "shapes", "here": ".", "linked": tmp_path / "link", "dots": "shapes/../shapes"}
    pictures = load(folder.get(how, shapes_dir))
    assert picture_names(pictures, np.array([0, 11])) == ("black_dot/00.png", "blue_square/01.png")
    assert picture_names(replace(pictures, folder=None), np.array([3, 0])) == ("3", "0")


def test_evaluation_streams_the_pictures_and_encodes_a_class_list_once(clip, shapes, monkeypatch):
    plan = make_plan(shapes, shots=2, seed=0, partition=None)
    learner = ZeroShot().start(Task(clip.model, clip.tokenizer, shapes.class_names, torch.empty(0, 24), torch.empty(0)))
    rows = np.tile(plan.tests["all"].rows, 12)
    assert 100 < len(rows) <= 200  # two batches
    tests = {"validation": plan.tests["validation"], "all": Part(plan.tests["all"].classes, rows)}
    sizes, lists = [], []
    teacher = pf.clip.ZeroShotTeacher.__init__
    logits = pf.clip.ZeroShotTeacher.logits

    def count_lists(self, model, tokenizer, class_names, *rest):
        lists.append(class_names)
        teacher(self, model, tokenizer, class_names, *rest)

    def count_rows(self, features):
        sizes.append(len(features))
        return logits(self, features)

    monkeypatch.setattr(pf.clip.ZeroShotTeacher, "__init__", count_lists)
    monkeypatch.setattr(pf.clip.ZeroShotTeacher, "logits", count_rows)
    seen = []
    features = encode_pictures(clip, shapes, plan.rows)
    measured = evaluate_parts(learner, features, tests, lambda: seen.append(1))
    assert lists == [shapes.class_names]
    n = len(plan.tests["validation"].rows)
    assert sizes == [n, 100, len(rows) - 100]
    assert len(seen) == n + len(rows)
    once = evaluate_parts(learner, features, plan.tests)
    assert accuracies(measured) == accuracies(once)


def test_run_measures_what_the_method_can_name(clip, shapes):
    plan = make_plan(shapes, shots=2, seed=0, partition=0)
    features = encode_pictures(clip, shapes, plan.rows)
    zero_shot, probe = (run_method(method(), clip, features, plan) for method in (ZeroShot, LinearProbe))
    assert set(zero_shot.accuracy) == {"validation", "base", "new", "harmonic mean"}
    assert set(probe.accuracy) == {"validation", "base"}
    assert zero_shot.history is probe.history is None
    part = plan.tests["new"]
    teacher = pf.clip.ZeroShotTeacher(clip.model, clip.tokenizer, part.class_names(shapes), "a picture of a {}.")
    right = teacher.logits(features.of(part.rows)).argmax(1) == part.labels(shapes)
    assert zero_shot.accuracy["new"] == right.double().mean().item()


def test_tested_elsewhere(clip, shapes):
    plan = make_plan(shapes, shots=2, seed=0, partition=None)
    features = encode_pictures(clip, shapes, np.arange(len(shapes)))
    part = plan.tests["all"]
    some = Part(part.classes[:-1], part.rows[shapes.labels[part.rows] < part.classes[-1]])
    transfer = [TransferTest("other", features, part), TransferTest("some", features, some)]
    coop, probe = (run_method(m, clip, features, plan, transfer=transfer) for m in (METHODS[2], METHODS[1]))
    for run in (coop, probe):
        assert run.accuracy["other"] == run.accuracy["all"]  # the same pictures and classes
    assert "some" in coop.accuracy
    assert "some" not in probe.accuracy  # it knows its classes only all together


def test_same_seed_same_numbers(clip, shapes):
    records = [train_once(clip, shapes)[0] for _ in range(2)]
    for record in records:
        del record["created"], record["seconds"]
    assert records[0] == records[1]


def test_record_is_strict_json_and_replaced_whole(tmp_path):
    file = tmp_path / "record.json"
    write_json(file, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, {"a": math.nan})  # NaN is not JSON: other readers stop at it
    assert json.loads(file.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_record_tells_where_a_users_pictures_are(clip, shapes, shapes_dir):
    assert train_once(clip, shapes)[0]["data"]["folder"] == str(shapes_dir.resolve())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_ctx": 2}, "n_ctx: expected at least the 4 tokens of ctx_init 'a picture of a', got 2"),
        ({"n_ctx": 100}, "100 context tokens .* do not fit .* lower n_ctx"),
        ({"ctx_init": "a picture of a {}."}, "ctx_init: expected only the words before the name"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_pictures_are_looked_at(clip, shapes, settings, message):
    def no_pictures(label: str, total: int):
        raise AssertionError(f"began {label}")

    with pytest.raises(ValueError, match=message):
        train_method(ProGradCoOp(**settings), clip, shapes, make_plan(shapes, 1, 0, None), no_pictures)


def test_the_bar_of_training_shows_loss_and_accuracy(clip, shapes):
    notes = []

    class Noting(NoBar):
        def note(self, text: str) -> None:
            notes.append(text)

    plan = make_plan(shapes, shots=2, seed=0, partition=None)
    record, _ = train_method(CoOp(epochs=3), clip, shapes, plan, lambda label, total: Noting())
    losses = [float(re.fullmatch(r"loss (\d+\.\d{3}), accuracy \d+ %", note)[1]) for note in notes]
    assert losses == [round(loss, 3) for loss in record["steps"]["task_loss"]]
