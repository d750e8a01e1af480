"""A loaded run predicts what it did before it was saved, on the weights that it was trained on, and on no others."""

import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from prograd_fast.clip import load_model
from prograd_fast.clip.feature_cache import tower_identity
from prograd_fast.methods import METHODS
from prograd_fast.training import (
    encode_pictures,
    load_run,
    make_plan,
    open_run,
    predict_files,
    save_run,
    train_method,
)
from tests.cli.support import fail, run_here
from tests.methods.test_every_method import FORMS, small
from tests.training.support import no_bars, train_once


@pytest.mark.parametrize("name", [*(method.name for method in METHODS), *FORMS])
@pytest.mark.parametrize("seed", [0, 5])
def test_every_run_predicts_after_loading_what_it_did_before(name, seed, clip, shapes, tmp_path):
    plan = make_plan(shapes, shots=2, seed=seed, partition=0)
    record, learner = train_method(small(name), clip, shapes, plan, no_bars)
    save_run(tmp_path, record, learner)
    read, method, loaded = open_run(tmp_path, clip)
    assert (read["method"], method) == (method.name, small(name))
    classes = [record["trained_classes"]]
    if method.names_new_classes:
        classes += [list(shapes.class_names), ["kite", "sea animal", "red circle"]]
    tower = clip.before_projection() if method.before_projection else clip
    features = encode_pictures(tower, shapes, np.arange(len(shapes))).values
    for names in classes:
        assert torch.equal(loaded.scores(names)(features).softmax(1), learner.scores(names)(features).softmax(1))
    found = predict_files(*load_run(tmp_path), clip, shapes.source[:3], no_bars)
    expected = learner.scores(found.class_names)(features[:3]).softmax(1).float()
    torch.testing.assert_close(torch.from_numpy(found.probabilities), expected.gather(1, torch.from_numpy(found.top)))


def test_features_behind_the_projection_are_none_for_prolip(clip, shapes, tmp_path):
    plan = make_plan(shapes, shots=2, seed=0, partition=0)
    save_run(tmp_path, *train_method(small("prolip"), clip, shapes, plan, no_bars))
    scores = open_run(tmp_path, clip)[2].scores(shapes.class_names)
    with pytest.raises(ValueError, match=r"expected those before the projection, 32 wide, got 24\. Encode the"):
        scores(encode_pictures(clip, shapes, np.arange(3)).values)


def test_a_run_without_a_known_model_asks_for_it(clip, shapes, tmp_path):
    save_run(tmp_path, *train_once(clip, shapes))
    with pytest.raises(ValueError, match="neither embedded nor on open_clip's list; if you trust it, give clip="):
        open_run(tmp_path)


def other_weights(clip, change):
    """The same model with one change to its weights."""
    model = copy.deepcopy(clip.model)
    with torch.no_grad():
        change(model)
    return replace(clip, model=model)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.visual.conv1.weight.view(-1)[0].add_(1.0),
        lambda model: model.token_embedding.weight[7].neg_(),
        lambda model: model.logit_scale.add_(0.5),
        lambda model: model.positional_embedding.mul_(1.1),
    ],
)
def test_other_weights_are_refused_wherever_a_run_is_used(clip, shapes, tmp_path, change):
    save_run(tmp_path, *train_once(clip, shapes))
    with pytest.raises(ValueError, match=r"this run was trained on other weights: expected 'local-dir:.*' with digest"):
        open_run(tmp_path, other_weights(clip, change))
    open_run(tmp_path, other_weights(clip, lambda model: None))


def test_half_precision_is_the_same_model(clip, shapes, tmp_path):
    save_run(tmp_path, *train_once(clip, shapes))
    half = other_weights(clip, lambda model: model.half())
    assert half.digest == clip.digest


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_replaced_weights_get_one_line(shapes_dir, clip_dir, tmp_path, capfd, monkeypatch, command):
    shutil.copytree(clip_dir, tmp_path / "model")
    arguments = ["--data", shapes_dir, "--model", f"local-dir:{tmp_path / 'model'}", "--shots", 1, "--epochs", 1]
    assert run_here(monkeypatch, "train", *arguments, "--out", tmp_path / "run") == 0
    weights = load_file(tmp_path / "model" / "open_clip_model.safetensors")
    weights["text_projection"] = -weights["text_projection"]
    save_file(weights, tmp_path / "model" / "open_clip_model.safetensors")
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    rest = ["--data", shapes_dir] if command == "evaluate" else [tmp_path / "a.png"]
    capfd.readouterr()
    for options in (["--trust"], ["--model", f"local-dir:{tmp_path / 'model'}"]):
        line = fail(capfd, monkeypatch, command, tmp_path / "run", *rest, *options)
        assert "this run was trained on other weights" in line
    assert run_here(monkeypatch, command, tmp_path / "run", *rest, "--model", f"local-dir:{clip_dir}") == 0
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    del record["model"]["digest"]
    (tmp_path / "run" / "record.json").write_text(json.dumps(record))
    line = fail(capfd, monkeypatch, command, tmp_path / "run", *rest, "--model", f"local-dir:{clip_dir}")
    assert "model.digest is None" in line
    assert "train it again" in line
    line = fail(capfd, monkeypatch, "train", *arguments, "--out", tmp_path / "run2", "--resume", "--force")
    assert "exclude each other" in line


def test_a_run_is_refused_by_a_model_that_takes_pictures_in_another_way(clip, clip_dir, shapes, tmp_path):
    """The same weights with another mean are another model: a configuration that was lost beside the weights."""
    save_run(tmp_path / "run", *train_once(clip, shapes))
    shutil.copytree(clip_dir, tmp_path / "other")
    config = tmp_path / "other" / "open_clip_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"preprocess_cfg": {"mean": [0.5] * 3}}))
    with pytest.raises(ValueError, match="takes pictures in another way than the model that this run was trained on"):
        open_run(tmp_path / "run", load_model(f"local-dir:{tmp_path / 'other'}", device="cpu"))
    written = replace(clip, preprocess=lambda picture: clip.preprocess(picture))
    open_run(tmp_path / "run", written)  # the same in other words


def test_a_run_is_refused_by_a_model_of_other_heads(clip, clip_dir, shapes, tmp_path):
    """The number of heads is not among the weights, and their shapes do not tell it."""
    save_run(tmp_path / "run", *train_once(clip, shapes))
    shutil.copytree(clip_dir, tmp_path / "other")
    config = tmp_path / "other" / "open_clip_config.json"
    config.write_text(config.read_text().replace('"head_width": 16', '"head_width": 8'))
    other = load_model(f"local-dir:{tmp_path / 'other'}", device="cpu")
    with pytest.raises(ValueError, match="trained on other weights"):
        open_run(tmp_path / "run", other)
    assert tower_identity(other.model.visual) != tower_identity(clip.model.visual)
