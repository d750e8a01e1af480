"""Heads on cached features against their authors' released code, in float64 (golden/head_*, see golden/README.md)."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from prograd_fast.methods import TaskRes
from prograd_fast.methods.cached_head import HeadMethod, Texts, TrainedHeadLearner
from prograd_fast.methods.gda import ALPHAS, GDA, chosen_alpha, gaussians
from prograd_fast.training.loop import _schedule, update
from tests.ops.support import BACKENDS, running_on
from tests.paths import GOLDEN
from tests.tolerances import assert_close


class Golden:
    """One golden file: its arrays as tensors, its recipe, and which of its arrays were compared or used."""

    def __init__(self, name: str) -> None:
        self._arrays = np.load(GOLDEN / f"head_{name}.npz")
        self.recipe = json.loads(str(self._arrays["recipe"]))
        self.used = {"recipe"}

    def __getattr__(self, name: str) -> Tensor:
        if name not in self._arrays:
            raise AttributeError(name)
        self.used.add(name)
        return torch.from_numpy(self._arrays[name])

    def close(self, actual, name, step=None):
        """Fail unless the array, or one step's, is reproduced."""
        expected = getattr(self, name) if step is None else getattr(self, name)[step]
        assert_close(torch.as_tensor(actual), expected, "golden trajectory", torch.float64)

    def all_used(self):
        assert self.used == set(self._arrays)

    def texts(self, rows: Tensor, scale: float = 100.0) -> Texts:
        """Class features (C, D) as prompts of one template."""
        return Texts([str(i) for i in range(len(rows))], rows[None], scale)


def task_of(x, labels, n_classes, **more):
    """What a head needs to know of a task."""
    values = {"seed": 0, "validation": None, "device": x.device, "class_names": [str(i) for i in range(n_classes)]}
    return SimpleNamespace(image_features=x, labels=labels, **(values | more))


def learner_of(method: HeadMethod, x, labels, texts: Texts) -> TrainedHeadLearner:
    return TrainedHeadLearner(method, task_of(x, labels, len(texts.names)), texts)


def probe(learner, x, labels):
    """Losses and gradients by name, of the head as it is."""
    losses = learner.losses(x, labels)
    names, parameters = zip(*learner.module.named_parameters(), strict=True)
    gradients = torch.autograd.grad(losses.task, parameters)
    return losses, dict(zip(names, gradients, strict=True))


def step(learner, schedule, x, labels):
    """One step of an epoch of one batch; the loss before it and the learning rate in it."""
    (rate,) = {group["lr"] for group in learner.optimizer.param_groups}
    loss = update(learner, (x, labels))["task"]
    schedule.step()
    return loss, torch.tensor(rate, dtype=torch.float64)


def set_parameters(learner, **values):
    with torch.no_grad():
        for name, value in values.items():
            getattr(learner.module, name).copy_(value)


@pytest.fixture(params=BACKENDS)
def backend(request):
    with running_on(request.param):
        yield


pytestmark = pytest.mark.usefixtures("backend")


def dassl_settings(recipe):
    """Settings of a method from those of Dassl's optimizer."""
    optim = recipe["optim"]
    return {
        "lr": optim["LR"],
        "weight_decay": optim["WEIGHT_DECAY"],
        "momentum": optim["MOMENTUM"],
        "epochs": optim["MAX_EPOCH"],
        "warmup_epochs": optim["WARMUP_EPOCH"],
        "warmup_lr": optim["WARMUP_CONS_LR"],
    }


# ------------------------------------------------------------------------------------------------------------- TaskRes


def test_taskres():
    golden = Golden("taskres")
    texts = golden.texts(golden.base_text, float(golden.logit_scale))
    x, x_test, y = F.normalize(golden.x, dim=-1), F.normalize(golden.x_test, dim=-1), golden.y
    assert len(golden.y_test) == len(x_test)
    method = TaskRes(scale=float(golden.residual_scale), **dassl_settings(golden.recipe))
    learner = learner_of(method, x, y, texts)
    head = learner.module
    golden.close(head(x, texts), "logits0")
    golden.close(head(x_test, texts), "test_logits0")
    losses, gradients = probe(learner, x, y)
    golden.close(losses.task, "loss0")
    golden.close(gradients["residual"], "grad0")

    set_parameters(learner, residual=golden.r_probe)
    losses, gradients = probe(learner, x, y)
    golden.close(losses.task, "probe_loss")
    golden.close(gradients["residual"], "probe_grad")
    golden.close(head(x, texts), "probe_logits")

    set_parameters(learner, residual=torch.zeros_like(head.residual))
    for k in range(len(golden.sgd_residuals)):
        _, gradients = probe(learner, x, y)
        set_parameters(learner, residual=head.residual - golden.sgd_lr * gradients["residual"])
        golden.close(head.residual, "sgd_residuals", k)
    golden.close(head(x_test, texts), "sgd_test_logits")

    learner = learner_of(method, x, y, texts)
    schedule = _schedule(learner)
    for k in range(len(golden.train_residuals)):
        loss, rate = step(learner, schedule, x, y)
        golden.close(loss, "train_loss", k)
        golden.close(rate, "train_lr", k)
        golden.close(learner.module.residual, "train_residuals", k)
    golden.close(learner.module(x_test, texts), "train_test_logits")
    golden.all_used()


# ----------------------------------------------------------------------------------------------------------------- GDA


def test_gda():
    golden = Golden("gda")
    rows = F.normalize(golden.views, dim=-1).flatten(0, 1)
    labels = golden.y.repeat(len(golden.views))
    texts = golden.texts(golden.text_weights.T)
    n_classes = len(texts.names)
    means, precision, weight, bias = gaussians(rows, labels, n_classes)
    golden.close(means, "mus")
    golden.close(precision, "precision")
    golden.close(weight.T, "W")
    golden.close(bias, "b")
    assert golden.alphas.tolist() == pytest.approx(list(ALPHAS))
    x_val, x_test = F.normalize(golden.x_val, dim=-1), F.normalize(golden.x_test, dim=-1)
    head = GDA().head(task_of(rows, labels, n_classes), texts)
    for k, alpha in enumerate(ALPHAS):
        head.alpha.fill_(alpha)
        golden.close(head(x_val, texts), "val_logits", k)
    golden.close(chosen_alpha(head, x_val, golden.y_val, texts, 0.1), "best_alpha")
    head = GDA().head(task_of(rows, labels, n_classes, validation=(x_val, golden.y_val)), texts)
    golden.close(head(x_test, texts), "test_logits")
    assert len(golden.y_test) == len(x_test)
    golden.all_used()
