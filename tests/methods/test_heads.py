"""Heads on cached features: what the authors' files do not hold, said another way; choices on validation pictures."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from prograd_fast.methods import (
    CLAP,
    GDA,
    CLIPAdapter,
    CrossModal,
    LPPlusPlus,
    ProKeR,
    ProLIP,
    TaskRes,
    TipAdapter,
    TipAdapterF,
    ZeroShot,
    method_named,
)
from prograd_fast.methods.cached_head import Texts
from prograd_fast.methods.gda import ALPHAS
from prograd_fast.methods.proker import FIXED, corrections
from prograd_fast.training import Grid, TrainOptions, make_plan, run_grid, train_method
from prograd_fast.training.loop import tune
from prograd_fast.training.update import update
from tests.methods.support import make_task
from tests.tiny_clip import CLASS_NAMES
from tests.tolerances import assert_close
from tests.training.support import no_bars

NEW = ["kite", "sea animal"]


@pytest.fixture(scope="module")
def task():
    return make_task()


@pytest.fixture(scope="module")
def with_validation(task):
    """Validation pictures whose labels are those of the next class: only other votes than zero-shot's are right."""
    return replace(task, validation=(task.image_features, task.labels))


def close(actual, expected, kind="formula"):
    assert_close(actual, expected, kind, torch.float64)


def texts_of(task, names=CLASS_NAMES):
    return Texts.of(task, names, ("a picture of a {}.",))


def test_texts_are_zero_shot_s(task):
    texts = Texts.of(task, CLASS_NAMES, ("a photo of a {}.", "itap of a {}."))
    scores = method_named("zero-shot", {"templates": ["a photo of a {}.", "itap of a {}."]}).start(task)
    close(texts.logits(task.image_features), scores.scores(CLASS_NAMES)(task.image_features))
    assert (texts.embeddings.norm(dim=-1) - 1).abs().min() > 1e-3  # TaskRes and CLAP need them as they are
    close(texts.mean, (texts.embeddings[0] + texts.embeddings[1]) / 2)


def test_projection_acts_where_it_is_asked_for(task):
    """λ = 1 against the projection by hand, step by step, away from the start, which is the teacher."""
    learner = CLAP(lambda_=1.0, epochs=40, lr=0.5, warmup_epochs=0, momentum=0.0).start(task)
    batch, weight, conflicts = (task.image_features, task.labels), learner.module.weight, 0
    with torch.no_grad():
        weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=weight.dtype)
    for _ in range(6):
        losses = learner.losses(*batch)
        (a,) = torch.autograd.grad(losses.task, weight, retain_graph=True)
        (b,) = torch.autograd.grad(losses.general, weight)
        dot = (a * b).sum()
        conflicts += int(dot < 0)
        expected = weight.detach() - 0.5 * (a - dot.clamp(max=0) / b.square().sum() * b)
        update(learner, batch)
        close(weight, expected)
    assert conflicts > 0
    general = F.kl_div(
        learner.module(batch[0], learner.texts).log_softmax(1),
        learner.texts.logits(batch[0]).softmax(1),
        reduction="batchmean",
    )
    close(learner.losses(*batch).general, general)


def test_gaussians_of_classes_without_pictures(task):
    """As the authors' base-to-new code has them, with as many neighbours as there are pictures."""
    learner = GDA(alpha=2.0).start(task)
    texts, rows = texts_of(task, NEW).unit, task.image_features
    width = rows.shape[1]
    means, inverses = [], []
    for text in texts:
        near = rows[torch.argsort(rows @ text, descending=True)[:64]]
        means.append(torch.cat([near, text.expand(16, -1)]).mean(0))
        covariance = (near - text).T @ (near - text) / (len(near) - 1)
        inverses.append(
            width * torch.linalg.pinv((len(near) - 1) * covariance + covariance.trace() * torch.eye(width).double())
        )
    mu, precision = torch.stack(means), torch.stack(inverses).mean(0)
    added = rows @ (mu @ precision).T - torch.einsum("nd,dc,nc->n", mu, precision, mu) / 2
    expected = texts_of(task, NEW).logits(rows) + 2.0 * added
    close(learner.scores(NEW)(rows).log_softmax(1), expected.log_softmax(1), "trajectory")
    mixed = learner.scores([NEW[1], CLASS_NAMES[2], NEW[0]])(rows)
    close(mixed[:, 1], learner.scores(CLASS_NAMES)(rows)[:, 2])
    close(mixed[:, 0] - mixed[:, 2], expected[:, 1] - expected[:, 0], "trajectory")


@pytest.mark.parametrize("method", [GDA(), TipAdapter(), ProKeR(), ProKeR(steps=(20, 10)), TipAdapterF(epochs=2)])
def test_choices_are_made_on_validation_pictures(method, task, with_validation):
    """None there: the settings. Some: the first best of the grid, by a loop over it."""
    plain, chosen = (method.start(one) for one in (task, with_validation))
    if isinstance(method, TipAdapterF):
        for learner in (plain, chosen):
            tune(learner)
    x, labels = with_validation.validation
    right = [(one.scores(CLASS_NAMES)(x).argmax(1) == labels).double().mean() for one in (plain, chosen)]
    assert right[1] >= right[0]
    if isinstance(method, GDA):
        assert float(plain.module.alpha) == 0.1
        assert float(chosen.module.alpha) in ALPHAS
    elif isinstance(method, ProKeR):
        assert float(plain.module.beta) == FIXED[4][0]  # four pictures of each class
        best = (-1.0, None)
        betas, ridges = (
            torch.linspace(*ends, n, dtype=torch.float64)
            for ends, n in zip(((0.5, 3.0), (1e-3, 1.0)), method.steps, strict=True)
        )
        for beta in betas:
            for ridge in ridges:
                gram = (-beta * torch.cdist(x, x).square() / 2).exp()
                zero_shot = x @ texts_of(task).unit.T
                target = F.one_hot(labels, 5) - zero_shot
                found = zero_shot + gram @ torch.linalg.solve(gram / ridge + torch.eye(len(x)).double(), target)
                accuracy = float((found.argmax(1) == labels).double().mean())
                if accuracy > best[0]:
                    best = accuracy, (beta, texts_of(task).scale * found)
        assert float(chosen.module.beta) == pytest.approx(float(best[1][0]))
        close(chosen.scores(CLASS_NAMES)(x), best[1][1], "trajectory")
    else:
        assert (float(plain.module.alpha), float(plain.module.beta)) == (1.17, 1.0)
        assert (float(chosen.module.alpha), float(chosen.module.beta)) != (1.17, 1.0)


def test_equal_pictures_and_hardly_any_ridge_do_not_stop_the_search():
    """Five equal pictures in float32: their kernel has rank one, and is not positive definite but for rounding."""
    gram, residual = torch.ones(5, 5), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.linalg.cholesky_ex(gram + 1e-9 * torch.eye(5))[1]
    found = list(corrections(gram, torch.ones(2, 5), residual, [1e-9, 1.0]))
    expected = [ridge / (5 + ridge) * residual.sum(0).expand(2, 3) for ridge in (1e-9, 1.0)]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_tip_adapter_adds_votes_to_zero_shot(task):
    x = task.image_features
    expected = texts_of(task).logits(x)
    for i in range(len(x)):
        for j in range(len(x)):
            expected[i, task.labels[j]] += 1.17 * (x[i] @ x[j] - 1).exp()
    close(TipAdapter().start(task).scores(CLASS_NAMES)(x), expected)


def test_tip_adapter_f_searches_with_the_keys_that_are_kept(with_validation):
    """An early stop keeps the epoch that was best at the settings' α and β; they are searched afterwards."""
    learner, kept, accuracies = TipAdapterF(epochs=9, lr=0.1).start(with_validation), [], iter([0.1, 0.2, 0.1, 0.1])

    def validate():
        kept.append(learner.module.keys.detach().clone())
        return next(accuracies)

    tune(learner, options=TrainOptions(patience=2), validate=validate)
    assert len(kept) == 4
    assert torch.equal(learner.module.keys, kept[1])
    expected = TipAdapterF().start(with_validation).module
    expected.keys.data.copy_(kept[1])
    TipAdapterF().search(expected, with_validation, learner.texts)
    assert float(learner.module.alpha) != TipAdapterF.alpha  # something was found
    assert (learner.module.alpha, learner.module.beta) == (expected.alpha, expected.beta)


def test_lpplusplus_as_the_paper_has_it_takes_the_gradient_of_its_own_epoch(task):
    """Plain SGD by hand: α moves with the gradient of every third epoch, and W with momentum."""
    learner = LPPlusPlus(epochs=7, alpha_every=3).start(task)
    x, y, t = task.image_features, task.labels, learner.texts.unit
    weight, bias, alpha = (p.detach().clone().requires_grad_() for p in learner.module.parameters())
    rate = 4 * len(x) / torch.linalg.eigvalsh(x.T @ x).max()
    alpha_rate = len(x) / (4 * (x @ t.T).square().sum(0).max())
    inner = torch.optim.SGD([weight, bias], lr=float(rate), momentum=0.9)
    for epoch in range(7):
        inner.zero_grad()
        alpha.grad = None
        F.cross_entropy(x @ weight.T + bias + alpha * (x @ t.T), y).backward()
        inner.step()
        if (epoch + 1) % 3 == 0:
            with torch.no_grad():
                alpha -= alpha_rate * alpha.grad
    tune(learner)
    for p, expected in zip(learner.module.parameters(), (weight, bias, alpha), strict=True):
        close(p, expected, "trajectory")


def test_cross_modal_learns_from_texts_and_pictures_alike(task):
    templates = ("a photo of a {}.", "itap of a {}.")
    learner = CrossModal(templates=templates).start(task)
    head, texts = learner.module, learner.texts
    rows = F.normalize(texts.embeddings, dim=-1)
    of_texts = [F.cross_entropy(texts.scale * row @ head.weight.T, torch.arange(5)) for row in rows]
    of_pictures = F.cross_entropy(texts.scale * task.image_features @ head.weight.T, task.labels)
    losses = learner.losses(task.image_features, task.labels)
    close(losses.task, of_pictures / 2 + (of_texts[0] + of_texts[1]) / 4)
    assert losses.terms.keys() == {"cross_entropy", "texts"}


def test_adapter_before_the_probe(task):
    learner = CrossModal(adapter=True).start(task)
    head, x = learner.module, task.image_features
    down, up = head.adapter.down.weight, head.adapter.up.weight
    changed = 0.2 * ((x @ down.T).relu() @ up.T).relu() + 0.8 * x
    close(head(x, learner.texts), learner.texts.scale * changed @ head.probe.weight.T)
    assert down.shape == (6, 24)


def test_prolip_is_held_near_the_projection_as_it_was():
    method = ProLIP(lambda_=0.5)
    task = make_task(method=method)
    learner, x, y = method.start(task), task.image_features, task.labels
    start, texts = task.model.visual.proj.detach().clone(), learner.texts
    with torch.no_grad():
        learner.module.weight += 0.1 * torch.randn(32, 24, generator=torch.Generator().manual_seed(1)).double()
    moved = learner.module.weight.detach()
    losses = learner.losses(x, y)
    logits, teacher = (texts.logits(F.normalize(x @ weight, dim=-1)) for weight in (moved, start))
    close(losses.terms["penalty"], (moved - start).square().sum() / 4)  # four pictures of each class
    close(losses.task, F.cross_entropy(logits, y) + losses.terms["penalty"])
    close(losses.general, F.kl_div(logits.log_softmax(1), teacher.softmax(1), reduction="batchmean"))
    assert torch.equal(task.model.visual.proj, start)
    assert float(ProLIP(weight=3.0).start(task).module.penalty) == 3.0


def test_a_grid_gives_each_method_its_own_features(clip, shapes, tmp_path):
    methods = (ZeroShot(), ProLIP(epochs=1))
    results = run_grid(Grid(methods, [2], seeds=1), clip, shapes, tmp_path, no_bars)
    zero_shot, prolip = (run["accuracy"] for run in results["runs"])
    assert zero_shot.keys() == prolip.keys()
    record, _ = train_method(ProLIP(epochs=1), clip, shapes, make_plan(shapes, 2, 0, None), no_bars)
    assert record["accuracy"] == prolip
    assert record["zero_shot_accuracy"] == zero_shot


def test_a_class_without_pictures_is_named(task):
    rows = task.labels != 2
    some = replace(task, image_features=task.image_features[rows], labels=task.labels[rows])
    for method in (GDA(), CLAP()):
        with pytest.raises(ValueError, match=f"{method.title} needs a picture of every class .*{CLASS_NAMES[2]!r}"):
            method.start(some)
    for method in (TipAdapter(), ProKeR(), LPPlusPlus(epochs=2), TaskRes(epochs=2)):
        assert method.start(some).scores(CLASS_NAMES)(some.image_features).isfinite().all()


def test_adapter_names_new_classes_and_others_do_not(task):
    learner = CLIPAdapter(epochs=2).start(task)
    assert learner.scores(NEW)(task.image_features).shape == (20, 2)
    with pytest.raises(ValueError, match="and no others"):
        TaskRes().start(task).scores(NEW)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gda", {"alpha": -1.0}, "alpha must be 0 or more, got -1.0"),
        ("tip-adapter", {"beta": -1.0}, "beta must be 0 or more"),
        ("tip-adapter-f", {"search_beta": 0.0}, "search_beta must be 0.1 or more"),
        ("clip-adapter", {"ratio": 1.5}, "ratio must be between 0 and 1"),
        ("clip-adapter", {"reduction": 0}, "reduction must be 1 or more"),
        ("cross-modal", {"wise": 2.0}, "wise must be between 0 and 1"),
        ("cross-modal", {"warmup_steps": -1}, "warmup_steps must be 0 or more"),
        ("prolip", {"weight": -1.0}, "weight must be 0 or more"),
        ("lp++", {"alpha_every": 0}, "alpha_every must be 1 or more"),
        ("proker", {"betas": [3.0, 1.0]}, "betas must be two numbers above 0"),
        ("proker", {"steps": [3]}, "steps must be two numbers of 1 or more"),
        ("clap", {"weights": "adaptive"}, "settings.weights: expected .*'l2'"),
        ("gda", {"templates": ["a photo."]}, r"templates: expected exactly one \{\}"),
    ],
)
def test_settings_out_of_range(name, settings, message):
    with pytest.raises(ValueError, match=message):
        method_named(name, settings)
