"""A saved run comes back, scores as the trained one, and is refused where its files are not whole."""

import json
from pathlib import Path

import pytest
import torch

import prograd_fast as pf
from prograd_fast.methods import CoOp
from prograd_fast.training import load_run, predict_files, save_run
from prograd_fast.training.evaluation import Evaluation
from tests.training.support import no_bars, probability_matrix, train_once

OVERFLOWING = 3e38  # a learning rate after which the context is no longer finite, or the tower's output is not


@pytest.fixture(scope="module")
def run(clip, shapes) -> tuple:
    """Record and learner of a run."""
    return train_once(clip, shapes)


def test_saved_run_comes_back(run, tmp_path):
    record, learner = run
    save_run(tmp_path / "run", record, learner)
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["prompt.safetensors", "record.json"]
    read, learned = load_run(tmp_path / "run")
    assert read == json.loads(json.dumps(record))  # JSON has no tuples
    assert torch.equal(learned["ctx"], learner.net.prompt.ctx)
    prompt = pf.clip.load_prompt(tmp_path / "run" / "prompt.safetensors")  # the run's file is a prompt file
    assert torch.equal(prompt.ctx, learner.net.prompt.ctx)
    assert prompt.metadata["method"] == "prograd"


def test_the_record_holds_the_evaluation_of_each_test(run, tmp_path):
    record, learner = run
    save_run(tmp_path, record, learner)
    details = {name: Evaluation.from_record(value) for name, value in load_run(tmp_path)[0]["details"].items()}
    assert details.keys() == {"validation", "base", "new"}
    assert {name: found.accuracy for name, found in details.items()}.items() <= record["accuracy"].items()
    assert {name: len(found) for name, found in details.items()}.items() <= record["pictures"].items()


def test_predictions_are_those_of_the_tuned_net(clip, shapes, run, tmp_path):
    record, learner = run
    save_run(tmp_path, record, learner)
    files = [Path(shapes.source[i]) for i in (5, 0)]  # type: ignore[arg-type]
    found = predict_files(*load_run(tmp_path), clip, files, no_bars)
    assert found.class_names == shapes.class_names  # all of the set's, though two of them were trained
    assert found.files == tuple(files)
    images = torch.stack([clip.preprocess(shapes.open(i)) for i in (5, 0)])
    expected = learner.net.with_classes(found.class_names)(images).softmax(1)
    torch.testing.assert_close(probability_matrix(found), expected)


def test_record_of_a_stopped_run_is_json(clip, shapes, tmp_path):
    record, learner = train_once(clip, shapes, CoOp(lr=OVERFLOWING, epochs=6))
    save_run(tmp_path, record, learner)
    assert load_run(tmp_path)[0]["completed"] is False


@pytest.mark.parametrize("name", ["record.json", "prompt.safetensors"])
def test_incomplete_runs_are_refused(run, tmp_path, name):
    save_run(tmp_path, *run)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:100])
    with pytest.raises(ValueError, match="not a run of"):
        load_run(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match="not a run of"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: {}, "method is None"),
        (lambda record: [], "method is None"),
        (lambda record: {**record, "method": "lora"}, "unknown method 'lora'"),
        (lambda record: {**record, "settings": None}, "settings is None"),
        (lambda record: {**record, "settings": {"steps": 3}}, "prograd has no setting steps; it has lr, .*lambda_"),
        (lambda record: {**record, "settings": {"epochs": 0}}, "epochs must be 1 or more"),
        (lambda record: {**record, "model": "emoji-lite"}, "model.name is None"),
        (lambda record: {**record, "model": {"name": "emoji-lite", "pretrained": 3}}, "model.pretrained is 3"),
        (lambda record: {**record, "settings": {"ctx_init": ["a"]}}, r"settings.ctx_init: expected .*, got \('a',\)"),
        (lambda record: {**record, "data": {"class_names": "ab"}}, "data.class_names is 'ab'"),
        (lambda record: {**record, "trained_classes": 2}, "trained_classes is 2"),
    ],
)
def test_records_of_another_form_are_refused(run, tmp_path, change, message):
    record, learner = run
    save_run(tmp_path, record, learner)
    (tmp_path / "record.json").write_text(json.dumps(change(record)))
    with pytest.raises(ValueError, match=f"not a run of .*record.json: {message}"):
        load_run(tmp_path)
