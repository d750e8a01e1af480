import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import prograd_fast as pf
from prograd_fast.data import PictureSet
from prograd_fast.methods import CoOp, LinearProbe, ProGrad, PromptTuningLearner, Task, ZeroShot
from prograd_fast.training import (
    encode_pictures,
    evaluate_run,
    load_model,
    load_run,
    make_plan,
    predict_files,
    run_benchmark,
    run_method,
    save_run,
    train_method,
    tune,
    write_json,
)
from prograd_fast.training.evaluate import accuracy, harmonic_mean
from prograd_fast.training.protocol import Part
from prograd_fast.training.run import examine
from tests.conftest import SHAPES, draw

OVERFLOWING = 1e300  # a learning rate after which the context is no longer finite, or the tower's output is not


def no_bars(label: str, total: int):
    return lambda: None


def learner_of(method, clip, pictures) -> PromptTuningLearner:
    plan = make_plan(pictures, shots=2, seed=0, partition=None)
    features = encode_pictures(clip, pictures, plan.rows)
    names, labels = plan.train.class_names(pictures), plan.train.labels(pictures)
    return method.start(Task(clip.model, clip.tokenizer, names, features.of(plan.train.rows), labels))


# ------------------------------------------------------------------------------------------------------------ features


def test_features_are_the_image_tower_s(clip, shapes):
    rows = np.array([7, 3, 3, 11])  # out of order, one twice
    seen = []
    features = encode_pictures(clip, shapes, rows, lambda: seen.append(1))
    images = torch.stack([clip.preprocess(shapes.open(int(row))) for row in rows])
    expected = normalize(clip.model.encode_image(images), dim=-1)
    torch.testing.assert_close(features.of(rows), expected)
    assert len(seen) == 3
    assert not features.values.requires_grad


def test_no_pictures(clip, shapes):
    with pytest.raises(ValueError, match="shapes: no pictures to look at"):
        encode_pictures(clip, shapes, np.array([], dtype=np.int64))


def test_unreadable_pictures_are_all_named_before_training(clip, tmp_path):
    files = []
    for i in range(80):  # more than one batch: the second one is looked at too
        files.append(tmp_path / f"{i:02}.png")
        draw("red_circle", i).save(files[-1])
    for i in (1, 2, 3, 70, 71, 72):
        files[i].write_bytes(files[i].read_bytes()[:60])
    pictures = PictureSet("cut", ("a",), np.zeros(80, int), np.array(["test"] * 80), np.array([""] * 80), files)
    with pytest.raises(ValueError, match="6 of 80 pictures cannot be read") as caught:
        encode_pictures(clip, pictures, np.arange(80))
    message = str(caught.value)
    assert all(f"{i:02}.png" in message for i in (1, 2, 3, 70, 71))
    assert "72.png" not in message
    assert "and 1 more" in message


# ---------------------------------------------------------------------------------------------------------------- loop


def test_history_has_every_step(clip, shapes):
    steps = []
    history = tune(learner_of(ProGrad(epochs=25), clip, shapes), lambda: steps.append(1))
    assert history.completed
    assert len(history.task_loss) == len(history.general_loss) == len(history.cosine) == len(steps) == 25
    assert history.conflict == [cosine < 0 for cosine in history.cosine]
    assert history.conflict_rate == sum(history.conflict[1:]) / 24  # at the first step the student is the teacher
    assert history.task_loss[-1] < history.task_loss[0]


@pytest.mark.parametrize("steps", [1, 3, 50])  # the last step breaks; a look at the end; a look in between
def test_training_stops_and_keeps_the_last_good_context(clip, shapes, steps):
    learner = learner_of(CoOp(lr=OVERFLOWING, epochs=steps), clip, shapes)
    start = learner.net.prompt.ctx.detach().clone()
    taken = []
    history = tune(learner, lambda: taken.append(1))
    assert not history.completed
    assert len(history.task_loss) == 1  # the first step was finite, its update was not
    assert torch.equal(learner.net.prompt.ctx, start)
    assert len(taken) == min(steps, 20)


def test_last_good_context_is_the_one_before_a_bad_gradient(clip, shapes):
    learner = learner_of(ProGrad(epochs=8), clip, shapes)
    contexts = []

    def poison_after_five_steps() -> None:
        contexts.append(learner.net.prompt.ctx.detach().clone())
        if len(contexts) == 5:
            learner.task.image_features[0, 0] = math.nan

    history = tune(learner, poison_after_five_steps)
    assert not history.completed
    assert len(history.task_loss) == 5
    # The loss at contexts[3] was the last finite one; that of contexts[4] was never seen to be.
    assert torch.equal(learner.net.prompt.ctx, contexts[3])


def test_rates_are_the_authors(clip, shapes):
    learner = learner_of(CoOp(lr=0.002, epochs=50, warmup_epochs=1), clip, shapes)
    rates = []
    tune(learner, lambda: rates.append(learner.optimizer.param_groups[0]["lr"]))
    assert rates[0] == pytest.approx(1e-5)
    assert rates[1] == 0.002
    assert rates[49] == pytest.approx(7.885299e-06, rel=1e-6)  # their log of epoch 50 of 50, KaiyangZhou/CoOp issue 26


def test_an_epoch_of_small_batches_has_every_picture_once(clip, shapes):
    learner = learner_of(CoOp(epochs=2, batch_size=3), clip, shapes)
    seen = []
    losses = learner.losses
    learner.losses = lambda features, labels: seen.append(features) or losses(features, labels)
    history = tune(learner)
    assert len(history.task_loss) == 6
    assert [len(batch) for batch in seen[:6]] == [3, 3, 2] * 2  # eight pictures: the last batch is not dropped
    for epoch in (seen[:3], seen[3:6]):
        rows = torch.cat(epoch)
        assert all((rows == row).all(1).sum() == 1 for row in learner.task.image_features)
    assert not torch.equal(seen[0], seen[3])


def test_clipped_gradient(clip, shapes):
    limit = 1e-3
    learner = learner_of(ProGrad(n_ctx=6, lr=1.0, momentum=0.0, epochs=1, clip_grad_norm=limit), clip, shapes)
    before = learner.net.prompt.ctx.detach().clone()
    tune(learner)
    assert (learner.net.prompt.ctx - before).norm().item() == pytest.approx(limit, rel=1e-4)


# ------------------------------------------------------------------------------------------------------------ protocol


def emoji_like() -> PictureSet:
    """4 classes in four styles, as in emoji: two of the task, one unseen, one that is neither."""
    styles = ["noto", "twemoji", "openmoji", "noto-v1"]
    entries = [(c, split, style) for c in range(4) for split in ("pool", "validation", "test") for style in styles]
    labels, splits, style = (np.array(column) for column in zip(*entries, strict=True))
    return PictureSet("made up", ("a", "b", "c", "d"), labels, splits, style, [b""] * len(entries))


def test_base_to_new_plan():
    pictures = emoji_like()
    plan = make_plan(pictures, shots=1, seed=0, partition=1)
    assert list(plan.tests) == ["validation", "base", "new", "openmoji/base", "openmoji/new"]
    base, new = plan.tests["base"].classes, plan.tests["new"].classes
    assert plan.train.classes.tolist() == plan.tests["validation"].classes.tolist() == base.tolist()
    assert sorted([*base, *new]) == [0, 1, 2, 3]
    assert len(plan.train.rows) == 2
    for name, part in plan.tests.items():
        assert set(pictures.labels[part.rows]) == set(part.classes)
        assert set(pictures.style[part.rows]) == ({"openmoji"} if "openmoji" in name else {"noto", "twemoji"})
        assert set(pictures.split[part.rows]) == {"validation" if name == "validation" else "test"}
        assert not set(part.rows) & set(plan.train.rows)
        assert set(part.rows) <= set(plan.rows)
    assert plan.tests["new"].labels(pictures).tolist() == [0, 0, 1, 1]  # re-indexed from 0


def test_plan_over_all_classes(shapes):
    plan = make_plan(shapes, shots=3, seed=0, partition=None)
    assert list(plan.tests) == ["validation", "all"]
    assert len(plan.train.rows) == 3 * len(SHAPES)
    assert plan.tests["all"].class_names(shapes) == shapes.class_names


# ------------------------------------------------------------------------------------------------------ runs and files


def test_accuracy_and_harmonic_mean():
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert accuracy(lambda _: scores, torch.zeros(3, 2), torch.tensor([0, 1, 1])) == 2 / 3
    assert harmonic_mean(0.5, 0.25) == 1 / 3
    assert harmonic_mean(0.5, 0.0) == 0.0


def test_evaluation_streams_the_pictures_and_encodes_a_class_list_once(clip, shapes, monkeypatch):
    plan = make_plan(shapes, shots=2, seed=0, partition=None)
    learner = ZeroShot().start(Task(clip.model, clip.tokenizer, shapes.class_names, torch.empty(0, 24), torch.empty(0)))
    rows = np.tile(plan.tests["all"].rows, 10)  # 160: two batches
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
    measured = examine(learner, clip, shapes, features, tests, lambda: seen.append(1))
    assert lists == [shapes.class_names]
    assert sizes == [4, 100, 60]
    assert len(seen) == 164
    once = examine(learner, clip, shapes, features, plan.tests)
    assert measured == once


def test_run_measures_what_the_method_can_name(clip, shapes):
    plan = make_plan(shapes, shots=2, seed=0, partition=0)
    features = encode_pictures(clip, shapes, plan.rows)
    zero_shot, probe = (run_method(method(), clip, shapes, features, plan) for method in (ZeroShot, LinearProbe))
    assert set(zero_shot.accuracy) == {"validation", "base", "new", "harmonic mean"}
    assert set(probe.accuracy) == {"validation", "base"}
    assert zero_shot.history is probe.history is None
    part = plan.tests["new"]
    teacher = pf.clip.ZeroShotTeacher(clip.model, clip.tokenizer, part.class_names(shapes), "a picture of a {}.")
    right = teacher.logits(features.of(part.rows)).argmax(1) == part.labels(shapes)
    assert zero_shot.accuracy["new"] == right.double().mean().item()


def train_once(clip, shapes, method=None):
    plan = make_plan(shapes, shots=2, seed=3, partition=0)
    return train_method(method or ProGrad(epochs=4), clip, shapes, plan, no_bars)


def test_same_seed_same_numbers(clip, shapes):
    records = [train_once(clip, shapes)[0] for _ in range(2)]
    for record in records:
        del record["created"], record["seconds"]
    assert records[0] == records[1]


def test_saved_run_comes_back(clip, shapes, tmp_path):
    record, learner = train_once(clip, shapes)
    save_run(tmp_path / "run", record, learner)
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["prompt.safetensors", "record.json"]
    read, learned = load_run(tmp_path / "run")
    assert read == json.loads(json.dumps(record))  # JSON has no tuples
    assert torch.equal(learned["ctx"], learner.net.prompt.ctx)
    prompt = pf.clip.load_prompt(tmp_path / "run" / "prompt.safetensors")  # the run's file is a prompt file
    assert torch.equal(prompt.ctx, learner.net.prompt.ctx)
    assert prompt.metadata["method"] == "prograd"


def test_evaluation_of_a_saved_run_gives_the_accuracy_of_its_record(clip, shapes, tmp_path):
    plan = make_plan(shapes, shots=2, seed=0, partition=None)
    record, learner = train_method(CoOp(epochs=4, lr=0.3), clip, shapes, plan, no_bars)
    save_run(tmp_path, record, learner)
    accuracies = evaluate_run(*load_run(tmp_path), clip, shapes, no_bars)
    assert accuracies["coop"] == {"all": record["accuracy"]["all"]}
    assert accuracies["zero-shot"] == {"all": record["zero_shot_accuracy"]["all"]}


def test_predictions_are_those_of_the_tuned_net(clip, shapes, tmp_path):
    record, learner = train_once(clip, shapes)
    save_run(tmp_path, record, learner)
    files = [Path(shapes.source[i]) for i in (5, 0)]  # type: ignore[arg-type]
    names, probabilities = predict_files(*load_run(tmp_path), clip, files, no_bars)
    assert names == shapes.class_names  # all of the set's, though two of them were trained
    images = torch.stack([clip.preprocess(shapes.open(i)) for i in (5, 0)])
    expected = learner.net.with_classes(names)(images).softmax(1)
    torch.testing.assert_close(probabilities, expected)


def test_record_is_strict_json_and_replaced_whole(tmp_path):
    file = tmp_path / "record.json"
    write_json(file, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, {"a": math.nan})  # NaN is not JSON: other readers stop at it
    assert json.loads(file.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_record_of_a_stopped_run_is_json(clip, shapes, tmp_path):
    record, learner = train_once(clip, shapes, CoOp(lr=OVERFLOWING, epochs=3))
    save_run(tmp_path, record, learner)
    assert load_run(tmp_path)[0]["completed"] is False


@pytest.mark.parametrize("name", ["record.json", "prompt.safetensors"])
def test_incomplete_runs_are_refused(clip, shapes, tmp_path, name):
    save_run(tmp_path, *train_once(clip, shapes))
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
def test_records_of_another_form_are_refused(clip, shapes, tmp_path, change, message):
    record, learner = train_once(clip, shapes)
    save_run(tmp_path, record, learner)
    (tmp_path / "record.json").write_text(json.dumps(change(record)))
    with pytest.raises(ValueError, match=f"not a run of .*record.json: {message}"):
        load_run(tmp_path)


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
        train_method(ProGrad(**settings), clip, shapes, make_plan(shapes, 1, 0, None), no_pictures)


def test_benchmark_runs_every_method_on_every_partition_and_seed(clip, shapes):
    bars = []

    def track(label: str, total: int):
        bars.append([total, 0])
        bar = bars[-1]

        def advance() -> None:
            bar[1] += 1

        return advance

    methods = [ZeroShot(), LinearProbe(), CoOp(epochs=2), ProGrad(epochs=3)]
    results = run_benchmark(clip, shapes, methods, shots=2, partitions=2, seeds=2, track=track)
    runs = results["runs"]
    assert {(run["method"], run["partition"], run["seed"]) for run in runs} == {
        (method.name, partition, seed) for method in methods for partition in range(2) for seed in range(2)
    }
    assert len(runs) == 16
    assert [len(run["steps"]["cosine"]) for run in runs if "steps" in run] == [2, 3] * 4
    assert all(done == total for total, done in bars)
    json.dumps(results, allow_nan=False)


# --------------------------------------------------------------------------------------------------------------- model


@pytest.mark.parametrize(
    ("name", "pretrained", "device", "message"),
    [
        ("emoji-light", None, None, "unknown model 'emoji-light'; expected emoji-lite, emoji-lite-named"),
        ("emoji-lite", "openai", None, "brings its own weights"),
        ("local-dir:somewhere", "openai", None, "brings its own weights"),
        ("local-dir:/no/such/folder", None, None, "cannot load model 'local-dir:/no/such/folder'"),
        ("ViT-B-32", None, None, "needs weights: give --pretrained as a checkpoint file or one of .*openai"),
        ("ViT-B-32", "no such file.pt", None, "cannot load model 'ViT-B-32' with weights 'no such file.pt'"),
        ("emoji-lite", None, "gpu", "cannot use device 'gpu'"),
        ("emoji-lite", None, "meta", "cannot use device 'meta'"),  # a device, but one without values
    ],
)
def test_models_that_cannot_be_loaded(name, pretrained, device, message):
    with pytest.raises(ValueError, match=message):
        load_model(name, pretrained, device)


def test_loaded_model_is_frozen_and_in_evaluation_mode(clip):
    assert not clip.model.training
    assert not any(p.requires_grad for p in clip.model.parameters())
