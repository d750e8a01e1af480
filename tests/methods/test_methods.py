"""Zero-shot, the linear probe, CoOp and ProGrad: what the papers write, settings, other class names, no host sync."""

import math
from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import prograd_fast as pf
from prograd_fast.methods import CoOp, LinearProbe, ProGradCoOp, Task, ZeroShot, method_named
from prograd_fast.training.loop import tune
from prograd_fast.training.update import update
from tests.tiny_clip import CLASS_NAMES, TOKENIZER, tiny_clip
from tests.tolerances import assert_close

OTHER_NAMES = ["sea animal", "kite"]


@pytest.fixture(scope="module")
def task() -> Task:
    """Six pictures of each of five classes: noisy copies of one random direction per class, in float64."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(len(CLASS_NAMES), 24, generator=generator, dtype=torch.float64)
    features = centres.repeat_interleave(6, 0) + 0.3 * torch.randn(30, 24, generator=generator, dtype=torch.float64)
    labels = torch.arange(len(CLASS_NAMES)).repeat_interleave(6)
    return Task(tiny_clip(), TOKENIZER, CLASS_NAMES, F.normalize(features, dim=-1), labels)


def by_hand(task: Task, lambda_: float, lr: float, steps: int) -> tuple[torch.Tensor, list[float]]:
    """The method as the papers write it, on torch.optim.SGD: context after training, cosine of each step."""
    net = pf.clip.PromptedCLIP(task.model, task.tokenizer, task.class_names, n_ctx=6, ctx_init="a picture of a")
    teacher = pf.clip.ZeroShotTeacher(task.model, task.tokenizer, task.class_names, "a picture of a {}.")
    target = teacher.logits(task.image_features).softmax(1)
    ctx = net.prompt.ctx
    optimizer = torch.optim.SGD([ctx], lr=lr, momentum=0.9)
    cosines = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        logits = net.logits(task.image_features)
        (a,) = torch.autograd.grad(F.cross_entropy(logits, task.labels), ctx, retain_graph=True)
        (b,) = torch.autograd.grad(F.kl_div(logits.log_softmax(1), target, reduction="batchmean"), ctx)
        cosines.append(F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item())
        if cosines[-1] < 0:
            a = a - lambda_ * (a * b).sum() / b.square().sum() * b
        ctx.grad = a
        optimizer.step()
    return ctx.detach(), cosines


@pytest.mark.parametrize(("method", "lambda_"), [(CoOp, 0.0), (ProGradCoOp, 1.0)])
def test_prompt_tuning_is_what_the_papers_write(task, method, lambda_):
    # 30 steps at a high rate: some conflict and some do not, so that both branches of the projection are in the result.
    # Two zero rows before the words: with the words alone the student starts as the teacher, and the general gradient
    # is rounding there.
    expected, cosines = by_hand(task, lambda_, lr=0.1, steps=30)
    learner = method(n_ctx=6, lr=0.1, epochs=30).start(task)
    history = tune(learner)
    assert 0 < sum(cosine < 0 for cosine in cosines) < 30
    assert_close(learner.net.prompt.ctx.detach(), expected, "golden trajectory", torch.float64)
    assert_close(torch.tensor(history.cosine), torch.tensor(cosines), "formula", torch.float32)


def test_student_starts_as_the_teacher(task):
    losses = ProGradCoOp().start(task).losses(task.image_features, task.labels)
    assert losses.general.item() == pytest.approx(0, abs=1e-12)


def test_step_reads_nothing_back_from_the_device(task):
    class NoScalars(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func is not torch.ops.aten._local_scalar_dense.default, "a tensor was read into Python"
            return func(*args, **(kwargs or {}))

    learner = ProGradCoOp().start(task)
    update(learner, (task.image_features, task.labels))  # the first step allocates state
    with NoScalars():
        update(learner, (task.image_features, task.labels))


def test_more_context_tokens_than_words(task):
    learner = ProGradCoOp(n_ctx=16).start(task)
    assert learner.net.prompt.ctx.shape == (16, 32)
    assert not learner.net.prompt.ctx[:12].any()  # the authors' layout: zero rows, then the words


@pytest.mark.parametrize("method", [CoOp(epochs=3), ProGradCoOp(epochs=3)])
def test_tuned_context_before_other_class_names(task, method):
    learner = method.start(task)
    tune(learner)
    net = pf.clip.PromptedCLIP(
        task.model, task.tokenizer, OTHER_NAMES, n_ctx=None, ctx_init=learner.net.prompt.ctx.detach()
    )
    expected = net.logits(task.image_features).detach()
    assert torch.equal(learner.scores(OTHER_NAMES)(task.image_features), expected)
    restored = method.restore(task.model, task.tokenizer, CLASS_NAMES, learner.module.state_dict())
    assert torch.equal(restored.scores(OTHER_NAMES)(task.image_features), expected)


def test_zero_shot_is_the_teacher_of_any_names(task):
    teacher = pf.clip.ZeroShotTeacher(task.model, task.tokenizer, OTHER_NAMES, "a picture of a {}.")
    scores = ZeroShot().start(task).scores(OTHER_NAMES)(task.image_features)
    assert torch.equal(scores, teacher.logits(task.image_features))


def test_linear_probe_learns_its_classes_and_knows_no_others(task):
    learner = LinearProbe().start(task)
    assert torch.equal(learner.scores(CLASS_NAMES)(task.image_features).argmax(1), task.labels)
    with pytest.raises(ValueError, match="and no others"):
        learner.scores(OTHER_NAMES)


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0.0},
        {"lr": math.inf},
        {"lr": math.nan},
        {"epochs": 0},
        {"batch_size": 0},
        {"momentum": -0.1},
        {"weight_decay": math.nan},
        {"warmup_epochs": 101},
        {"warmup_lr": 0.0},
        {"clip_grad_norm": 0.0},
    ],
)
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
        ProGradCoOp(**settings)


@pytest.mark.parametrize("template", ["a photo.", "{} or {}"])
def test_templates_have_one_place_for_the_name(template):
    with pytest.raises(ValueError, match=r"templates: expected exactly one \{\} for the class name"):
        ProGradCoOp(templates=(template,))


def test_method_by_name_and_settings():
    assert method_named("prograd", {"lr": 1, "templates": ["{}."]}) == ProGradCoOp(lr=1, templates=("{}.",))
    for name, settings, message in [
        ("lora", {}, "unknown method 'lora'; expected one of zero-shot, linear-probe"),
        ("prograd", {"ctx": "a"}, "prograd has no setting ctx; it has lr, .*ctx_init"),
        ("prograd", {"epochs": 1.5}, "settings.epochs: expected int, got 1.5"),
        ("prograd", {"lr": None}, "settings.lr: expected float, got None"),
        ("prograd", {"epochs": True}, "settings.epochs: expected int, got True"),
        ("prograd", {"templates": [3]}, r"settings.templates: expected tuple\[str, \.\.\.\], got \(3,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            method_named(name, settings)
    with pytest.raises(ValueError, match="prograd has no preset 'mine'; it has rn50-1-shot, "):
        method_named("prograd", {}, "mine")


def test_what_another_method_learned_is_refused(task):
    learned = LinearProbe().start(task).module.state_dict()
    with pytest.raises(ValueError, match=r"what was learned does not fit prograd on this model.*Context"):
        ProGradCoOp().restore(task.model, task.tokenizer, CLASS_NAMES, learned)


@pytest.mark.filterwarnings("error")
def test_linear_probe_is_quiet_with_one_picture_per_class(task):
    n = 24  # scikit-learn warns from 21 on
    features = torch.eye(n, task.image_features.shape[1])
    names = tuple(f"class {i}" for i in range(n))
    LinearProbe().start(replace(task, image_features=features, labels=torch.arange(n), class_names=names))


def test_linear_probe_is_scikit_learn_s(task):
    for n in (2, 5):  # two classes are stored another way there
        some = Task(task.model, task.tokenizer, CLASS_NAMES[:n], task.image_features[: 6 * n], task.labels[: 6 * n])
        learner = LinearProbe().start(some)
        regression = LogisticRegression(max_iter=1000).fit(some.image_features.numpy(), some.labels.numpy())
        expected = torch.from_numpy(regression.predict_proba(task.image_features.numpy()))
        scores = learner.scores(CLASS_NAMES[:n])(task.image_features)
        assert_close(scores.softmax(1), expected, "formula", torch.float64)
        restored = LinearProbe().restore(task.model, task.tokenizer, CLASS_NAMES[:n], learner.module.state_dict())
        assert torch.equal(restored.scores(CLASS_NAMES[:n])(task.image_features), scores)
