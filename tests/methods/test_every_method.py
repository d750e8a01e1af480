"""Guards what every method promises: one class, batches of any size, checkpoints, saved runs, settings."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from torch.nn import functional as F

from prograd_fast.data import load
from prograd_fast.methods import METHODS, GradientLearner, GradientMethod, Task, method_named
from prograd_fast.training import (
    encode_pictures,
    evaluate_run,
    load_model,
    load_run,
    make_plan,
    predict_files,
    save_run,
    train_method,
)
from prograd_fast.training.evaluate import accuracies
from prograd_fast.training.features import seen_by
from prograd_fast.training.loop import tune
from prograd_fast.training.update import update
from tests.methods.support import make_task
from tests.slow import slow_but_for
from tests.tiny_clip import CLASS_NAMES
from tests.tolerances import assert_close
from tests.training.support import no_bars, probability_matrix

# Few of everything, so that each takes a second: two stages where there are two, a batch that leaves a rest.
SMALL = {
    "cocoop": {"epochs": 3, "batch_size": 3},
    "lasp": {"epochs": 3, "sentences": ["a photo of a {}.", "itap of a {}."], "virtual_classes": ["kite", "cat"]},
    "subpt": {"epochs": 3, "early_epochs": 3, "rank": 2},
    "nfl": {"epochs": 3, "novel_names": ["kite", "cat", "sea animal"]},
    "subpt-nfl": {"epochs": 3, "early_epochs": 3, "rank": 2, "novel_names": ["kite", "sea animal"]},
    "variational": {"epochs": 3, "samples": 3},
    "promptsrc": {"epochs": 3, "sentences": ["a photo of a {}.", "itap of a {}."]},
    "anchoropt": {"epochs": 3, "anchor_epochs": 2},
    "proda": {"epochs": 3, "n_contexts": 8},
    "xerm": {"epochs": 3, "variant": "tde"},
}
RANDOM = (
    "atprompt",
    "cocoop",
    "variational",
    "promptsrc",
    "tcp",
    "dept",
    "lasp",
    "xerm",
)  # starts, samples, noise or batches
NAMES = [method.name for method in METHODS]
TRAINED = [method.name for method in METHODS if issubclass(method, GradientMethod)]


# The combinations that the papers claim, and the other forms of a method.
FORMS = {
    "CoCoOp + ProGrad": ("cocoop", {"lambda_": 1.0}),
    "LASP + ProGrad": ("lasp", {"lambda_": 1.0}),
    "TCP + ProGrad": ("tcp", {"lambda_": 1.0}),
    "DePT + ProGrad": ("dept", {"lambda_": 1.0}),
    "ATPrompt + ProGrad": ("atprompt", {"lambda_": 1.0}),
    "ProDA + ProGrad": ("proda", {"lambda_": 1.0}),
    "AnchorOPT + ProGrad": ("anchoropt", {"lambda_": 1.0, "n_anchor": 2}),
    "variational CoCoOp": ("variational", {"conditional": True, "batch_size": 4}),
    "xERM PC": ("xerm", {"variant": "pc"}),
    "TaskRes + ProGrad": ("taskres", {"lambda_": 1.0}),
    "adaptive CLAP": ("clap", {"adaptive": True}),
    "cross-modal adapter": ("cross-modal", {"adapter": True}),
    "LP++ as released": ("lp++", {"sum_gradients": True}),
}


def small(name, **changes):
    name, form = FORMS.get(name, (name, {}))
    changes = {**form, **changes}
    epochs = {"epochs": 3} if name in TRAINED else {}
    return method_named(name, {**epochs, **SMALL.get(name, {}), **changes})


@pytest.mark.parametrize("name", NAMES)
def test_one_class(name):
    """Nothing to tell apart: all is finite."""
    task = make_task(n_classes=1, method=small(name))
    learner = small(name).start(task)
    if isinstance(learner, GradientLearner):
        assert tune(learner).completed
    assert learner.scores(CLASS_NAMES[:1])(task.image_features).shape == (4, 1)
    assert learner.scores(CLASS_NAMES[:1])(task.image_features).isfinite().all()


@pytest.mark.parametrize("name", [*TRAINED, *FORMS])
@pytest.mark.parametrize("batch", [len(CLASS_NAMES), 6])  # as many as classes; 6, the context's length
def test_a_batch_is_the_mean_of_its_pictures(name, batch):
    """Pictures do not mix: the cross-entropy of several is the mean of theirs, and the scores are the same alone."""
    task = make_task(method=small(name))
    settings = {"n_ctx": 6} if hasattr(small(name), "n_ctx") else {}
    learner = small(name, **settings).start(task)
    x, y = task.image_features[::3][:batch], task.labels[::3][:batch]
    if hasattr(learner, "context"):
        noise = learner.context.noise(batch, learner.generator)
        learner.context.noise = lambda n, generator: None if noise is None else noise[:, :1]
    entropy = learner.losses(x, y).terms.get("cross_entropy", learner.losses(x, y).task)
    each = [learner.losses(x[i : i + 1], y[i : i + 1]) for i in range(batch)]
    expected = torch.stack([losses.terms.get("cross_entropy", losses.task) for losses in each]).mean()
    assert_close(entropy, expected, "formula", torch.float64)
    scores = learner.scores(CLASS_NAMES)
    assert_close(scores(x), torch.cat([scores(x[i : i + 1]) for i in range(batch)]), "formula", torch.float64)
    assert scores(x).shape == (batch, len(CLASS_NAMES))


@pytest.mark.parametrize("name", [*TRAINED, *FORMS])
def test_training_goes_on_where_it_was(name):
    """A learner made anew from the states of another takes the same steps, in whichever stage."""
    task = make_task(method=small(name))
    method = small(name, batch_size=7)
    batches = [(task.image_features[i::3], task.labels[i::3]) for i in range(3)]
    epochs = sum(method.stages())

    def run(learner, first, last):
        for epoch in range(first, last):
            for batch in batches:
                update(learner, batch)
            learner.epoch_ended(epoch + 1)

    unbroken = method.start(task)
    run(unbroken, 0, epochs)
    for stop in {1, epochs // 2, epochs - 1}:  # of two stages, the end of the first too
        first = method.start(task)
        run(first, 0, stop)
        states = [first.module.state_dict(), first.state_dict(), first.optimizer.state_dict()]
        second = replace(method).start(task)
        second.module.load_state_dict(states[0])
        second.load_state_dict(states[1])
        second.optimizer.load_state_dict(states[2])
        run(second, stop, epochs)
        for key, value in unbroken.module.state_dict().items():
            assert torch.equal(second.module.state_dict()[key], value), (stop, key)


@pytest.mark.parametrize("name", [name for name in [*TRAINED, *FORMS] if "variational" not in name])
def test_correct_pictures_are_counted(name):
    """As the scores have them; what is random would differ, and the variational samples are."""
    task = make_task(method=small(name))
    learner = small(name).start(task)
    if "xerm" in name.lower():
        learner.learning = "student"
    if "anchoropt" in name.lower():
        learner.begin_second_stage()
        learner.context.noise = lambda n, generator: None
    right = learner.scores(CLASS_NAMES)(task.image_features).argmax(1) == task.labels
    assert learner.losses(task.image_features, task.labels).correct.item() == right.sum().item()


@pytest.mark.parametrize("name", NAMES)
def test_saved_run_scores_as_the_trained_one(name, clip, shapes, tmp_path):
    plan = make_plan(shapes, shots=2, seed=0, partition=None)
    record, learner = train_method(small(name), clip, shapes, plan, no_bars)
    save_run(tmp_path, record, learner)
    loaded = load_run(tmp_path)
    assert loaded[0] == json.loads(json.dumps(record))
    tests = evaluate_run(*loaded, clip, shapes, no_bars).tests
    assert accuracies(tests[name]) == {"all": record["accuracy"]["all"]}
    assert accuracies(tests["zero-shot"]) == {"all": record["zero_shot_accuracy"]["all"]}
    files = list(shapes.source[:4])  # a batch that is not padded: GDA's inverse enlarges a difference of rounding
    found = predict_files(*loaded, clip, files, no_bars)
    images = torch.stack([clip.preprocess(shapes.open(i)) for i in range(4)])
    tower = seen_by(small(name), clip).model
    expected = learner.scores(found.class_names)(F.normalize(tower.encode_image(images), dim=-1)).softmax(1)
    torch.testing.assert_close(probability_matrix(found), expected, check_dtype=False)


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_result_another_seed_another(name):
    task = make_task(method=small(name))
    learned = []
    for seed in (0, 0, 1):
        learner = small(name).start(replace(task, seed=seed))
        if isinstance(learner, GradientLearner):
            tune(learner)
        learned.append(learner.module.state_dict())
    assert all(torch.equal(learned[0][key], learned[1][key]) for key in learned[0])
    if name in RANDOM:
        assert not all(torch.equal(learned[0][key], learned[2][key]) for key in learned[0])


@pytest.mark.parametrize("name", TRAINED)
def test_conflicts_are_told_where_there_is_a_general_loss(name):
    history = tune(small(name).start(make_task(method=small(name))))
    assert math.isnan(history.conflict_rate) == (name not in ("coop", "prograd"))


@pytest.fixture(scope="module")
def emoji_tasks():
    """Eight pictures of each of six emoji: features from behind and from before the visual projection."""
    pictures, clip = load("emoji"), load_model("emoji-lite", device="cpu")
    plan = make_plan(pictures, shots=8, seed=0, partition=0)
    train = replace(plan.train, classes=plan.train.classes[:6])
    train = replace(train, rows=train.rows[[label in train.classes for label in pictures.labels[train.rows]]])
    names, labels = train.class_names(pictures), train.labels(pictures)
    features = [encode_pictures(tower, pictures, train.rows).values for tower in (clip, clip.before_projection())]
    return [Task(clip.model, clip.tokenizer, names, values, labels) for values in features]


@pytest.mark.parametrize("name", slow_but_for(["prograd", "lasp"], TRAINED))
def test_training_on_emoji_improves_the_method_s_own_objective(name, emoji_tasks):
    method = small(name, **({"epochs": 12, "early_epochs": 4} if "subpt" in name else {"epochs": 12}))
    emoji_task = emoji_tasks[method.before_projection]
    learner = method.start(emoji_task)
    before = small(name).start(emoji_task)
    assert tune(learner).completed
    if "xerm" in name.lower():  # the student's objective, given the trained teacher
        before.teacher.load_state_dict(learner.teacher.state_dict())
        before.learning = "student"
    if name == "anchoropt":  # the second stage's, given the anchor
        before.context.anchor = learner.context.anchor
        before.begin_second_stage()
    losses = []
    with torch.no_grad():  # the mean over what is random, from the same draws
        for one in (before, learner):
            one.generator.manual_seed(1)
            draws = [one.losses(emoji_task.image_features, emoji_task.labels).task for _ in range(4)]
            losses.append(torch.stack(draws).mean())
    assert losses[1] < losses[0]


def test_every_method_says_what_it_is():
    assert all(2021 <= method.year <= 2026 and method.trains and method.keeps for method in METHODS)


def test_names_are_their_own():
    assert len(set(NAMES)) == len({method.title for method in METHODS}) == len(METHODS) == 29
    unnamed = [method.name for method in METHODS if not method.names_new_classes]
    assert unnamed == [
        "linear-probe",
        "xerm",
        "tip-adapter",
        "tip-adapter-f",
        "taskres",
        "cross-modal",
        "lp++",
        "zs-lp",
        "clap",
        "proker",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_settings_survive_json_and_presets_are_settings(name):
    method = small(name)
    assert method_named(name, json.loads(json.dumps(asdict(method)))) == method
    for preset in method.presets:
        assert isinstance(method_named(name, {}, preset), type(method))


def test_published_settings():
    """A few of the tables in the authors' repositories, written out."""
    lasp = method_named("lasp", {}, "vit-b16-base-to-new")
    assert (lasp.lr, lasp.epochs, lasp.warmup_epochs, lasp.alpha, lasp.clip_grad_norm) == (0.032, 25, 3, 5.0, 1.0)
    assert (lasp.ctx_init, lasp.batch_size, len(lasp.sentences), len(set(lasp.sentences))) == (
        "a photo of a",
        32,
        35,
        34,
    )
    kgcoop = method_named("kgcoop", {}, "vit-b16-base-to-new")
    assert (kgcoop.weight, kgcoop.batch_size, kgcoop.epochs, kgcoop.lr) == (8.0, 128, 100, 0.002)
    subpt = method_named("subpt", {}, "rn50-16-shot")
    assert (subpt.stages(), subpt.rank, subpt.n_ctx) == ((50, 200), 10, 16)
    promptsrc = method_named("promptsrc", {}, "vit-b16-base-to-new")
    assert (promptsrc.depth, promptsrc.epochs, promptsrc.batch_size) == (9, 20, 4)
    assert int(promptsrc.weights().argmax()) == 14  # epoch 15
    eurosat = method_named("variational", {}, "vit-b16-base-to-new-eurosat")
    assert (eurosat.samples, eurosat.epochs, eurosat.batch_size, eurosat.conditional) == (20, 60, 1, False)
    tcp = method_named("tcp", {}, "vit-b16-base-to-new")
    assert (tcp.block, tcp.n_ctx, tcp.epochs, tcp.weight, tcp.lr, tcp.weight_decay) == (8, 4, 50, 8.0, 0.002, 5e-4)
    dept = method_named("dept", {}, "vit-b16-base-to-new")
    assert (dept.lr, dept.head_rate, dept.head_weight, dept.batch_size, dept.epochs) == (0.0035, 6.5, 0.7, 4, 10)
    pets = method_named("atprompt", {}, "vit-b16-base-to-new-pets")
    assert (pets.attributes, pets.n_attribute, pets.n_ctx, pets.epochs) == (("playfulness", "energy"), 2, 2, 100)
    cars = method_named("anchoropt", {}, "vit-b16-base-to-new-cars")
    assert (cars.stages(), cars.n_ctx, cars.anchor_weight, cars.kd_temperature) == ((40, 100), 8, 100.0, 4.0)
    proda = method_named("proda", {}, "vit-b16-port")
    assert (proda.n_contexts, proda.contexts_at_once, proda.n_ctx, proda.lr, proda.batch_size) == (32, 4, 16, 0.001, 4)
    prograd = method_named("prograd", {"lambda_": 0.8}, "rn50-16-shot")
    assert (prograd.lambda_, prograd.epochs, prograd.n_ctx, prograd.weight_decay) == (0.8, 200, 16, 5e-4)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("subpt", {"rank": 20}, "rank must be between 1 and early_epochs - 1, 19, got 20"),
        ("subpt", {"lambda_": 1.0}, "lambda_ must be None, since the subspace is the gradient's rule"),
        ("variational", {"samples": 0}, "samples must be 1 or more"),
        ("promptsrc", {"depth": 0}, "depth must be 1 or more"),
        ("promptsrc", {"gpa_std": 0.0}, "gpa_std must be"),
        ("tcp", {"block": 0}, "block must be 1 or more, or None"),
        ("atprompt", {"attributes": []}, "attributes: expected a word at least"),
        ("atprompt", {"n_attribute": 0}, "n_attribute must be 1 or more"),
        ("proda", {"n_contexts": 6}, "n_contexts must be a multiple of 4, from 4 to 1000, got 6"),
        ("proda", {"alpha": -0.1}, "alpha must be 0 or more, got -0.1"),
        ("proda", {"contexts_at_once": 64}, "contexts_at_once must be a multiple of 4, from 4 to 32, got 64"),
        ("anchoropt", {"n_anchor": 0}, "n_anchor must be 1 or more"),
        ("anchoropt", {"anchor_epochs": 0}, "anchor_epochs must be 1 or more"),
        ("anchoropt", {"anchor_weight": -1.0}, "anchor_weight must be 0 or more, got -1"),
        ("anchoropt", {"entropy_weight": -1.0}, "entropy_weight must be 0 or more, got -1"),
        ("anchoropt", {"kd_weight": -1.0}, "kd_weight must be 0 or more, got -1"),
        ("anchoropt", {"gumbel_temperature": 0.0}, "gumbel_temperature must be above 0"),
        ("anchoropt", {"descriptions": ["a cat"]}, "descriptions: expected sentences with one {} for the class name"),
        ("dept", {"head_weight": 1.5}, "head_weight must be between 0 and 1"),
        ("dept", {"image_length": 0.0}, "image_length must be above 0"),
        ("xerm", {"variant": "ride"}, "settings.variant: expected one of 'pc', 'tde', got 'ride'"),
        ("xerm", {"gamma": math.inf}, "gamma must be above 0 and finite"),
    ],
)
def test_settings_out_of_range(name, settings, message):
    with pytest.raises(ValueError, match=message):
        method_named(name, settings)
