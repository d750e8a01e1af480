"""Heads on cached features against their authors' released code, in float64 (golden/head_*, see golden/README.md)."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prograd_fast.methods import (
    CLAP,
    ZSLP,
    CLIPAdapter,
    CrossModal,
    LPPlusPlus,
    ProKeR,
    ProLIP,
    TaskRes,
    TipAdapter,
    TipAdapterF,
    tip_adapter,
)
from prograd_fast.methods.cached_head import HeadMethod, Texts, TrainedHeadLearner, accuracy
from prograd_fast.methods.clap import class_weights
from prograd_fast.methods.crops import Crops
from prograd_fast.methods.gda import ALPHAS, GDA, chosen_alpha, gaussians
from prograd_fast.methods.proker import FIXED, coefficients, kernel, residuals
from prograd_fast.training.loop import _schedule
from prograd_fast.training.update import update
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
    names = [str(i) for i in range(n_classes)]
    values = {"seed": 0, "validation": None, "teacher": None, "crops": 1, "device": x.device, "class_names": names}
    return SimpleNamespace(image_features=x, labels=labels, **(values | more))


def learner_of(method: HeadMethod, x, labels, texts: Texts) -> TrainedHeadLearner:
    return method.learner(task_of(x, labels, len(texts.names)), texts)


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


# ------------------------------------------------------------------------------------------------------ CLAP and ZS-LP


def test_clap():
    golden = Golden("clap")
    texts = golden.texts(golden.base_text, float(golden.logit_scale))
    x, x_test, y = F.normalize(golden.x, dim=-1), F.normalize(golden.x_test, dim=-1), golden.y
    assert len(golden.y_test) == len(x_test)
    settings = dassl_settings(golden.recipe)
    clap, plain = (learner_of(method(**settings), x, y, texts) for method in (CLAP, ZSLP))
    logits = plain.module(x, texts).detach()
    golden.close(logits, "zs_logits")
    for weights in ("l2", "corrected", "constant", "balanced"):
        name = "penalty_l2" if weights == "l2" else f"penalty_l2_{weights}"
        golden.close(class_weights(logits, y, weights), name)
        golden.close(learner_of(CLAP(weights=weights), x, y, texts).module.multipliers, name)

    for learner, name in ((plain, "zslp"), (clap, "clap")):
        start = learner.module.weight.detach().clone()
        set_parameters(learner, weight=golden.probe_W)
        losses, gradients = probe(learner, x, y)
        golden.close(losses.task, f"{name}_probe_loss")
        golden.close(losses.terms["cross_entropy"], f"{name}_probe_ce")
        golden.close(gradients["weight"], f"{name}_probe_grad")
        golden.close(learner.module(x, texts), "probe_logits")
        if name == "clap":
            golden.close(losses.terms["constraint"], "clap_probe_constraint")
        set_parameters(learner, weight=start)
        schedule = _schedule(learner)
        for k in range(len(golden.lr)):
            loss, rate = step(learner, schedule, x, y)
            golden.close(loss, f"{name}_loss", k)
            golden.close(rate, "lr", k)
            golden.close(learner.module.weight, f"{name}_W", k)
        golden.close(learner.module(x_test, texts), f"{name}_test_logits")

    head = clap.module
    golden.close(head.multipliers, "outer_lambda_before")
    golden.close(head.steps, "outer_rho_before")
    adaptive = CLAP(adaptive=True)
    for call in (1, 2):
        clap.settings.epoch_ended(clap, call)  # not adaptive: nothing moves
        adaptive.epoch_ended(clap, call)
        golden.close(head.multipliers, f"outer_lambda_{call}")
        golden.close(head.steps, f"outer_rho_{call}")
    golden.all_used()


# ---------------------------------------------------------------------------------------------------------------- LP++


def test_lpplusplus():
    golden = Golden("lpp")
    golden.close(F.normalize(golden.x_raw, dim=-1), "x")
    texts = golden.texts(golden.text_weights.T)
    x, y = golden.x, golden.y
    x_val, x_test = F.normalize(golden.x_val, dim=-1), F.normalize(golden.x_test, dim=-1)
    assert len(golden.y_test) == len(x_test)
    recipe = golden.recipe
    settings = {name: recipe[name] for name in ("epochs", "momentum", "alpha_every")}
    learner = learner_of(LPPlusPlus(**settings, sum_gradients=True), x, y, texts)
    head, optimizer = learner.module, learner.optimizer
    golden.close(head.weight, "class_sums")
    assert torch.equal(head.alpha, head.alpha[:1].expand(4))
    golden.close(head.alpha[0], "init_alpha")
    for group, name in zip(optimizer.param_groups, ("lr_w", "lr_alpha"), strict=True):
        golden.close(torch.tensor(group["lr"], dtype=torch.float64), name)
    assert head.bias.abs().max() <= 1 / 16**0.5
    set_parameters(learner, bias=golden.bias0)
    schedule = _schedule(learner)
    golden.close(head(x, texts), "logits0")
    kept = {epoch: i for i, epoch in enumerate(golden.hist_epochs.tolist())}
    gradients = torch.zeros_like(head.alpha)
    best = (-1.0, -1, None)
    for epoch in range(recipe["epochs"]):
        golden.close(head.alpha, "hist_alpha", epoch)
        golden.close(gradients, "hist_alpha_grad", epoch)
        if epoch in kept:
            golden.close(head.weight, "hist_W", kept[epoch])
            golden.close(head.bias, "hist_b", kept[epoch])
        if epoch == recipe["epochs"] - 1:
            golden.close(head(x, texts), "logits_last_train")
        golden.close(update(learner, (x, y))["task"], "hist_loss", epoch)
        schedule.step()
        gradients = optimizer.state[head.alpha]["momentum_buffer"]
        found = float(accuracy(head(x_val, texts), golden.y_val))
        if found >= best[0]:  # the latest of equals
            best = found, epoch, head(x_test, texts)
    golden.close(head.weight, "final_W")
    golden.close(head.bias, "final_b")
    golden.close(head.alpha, "final_alpha")
    golden.close(gradients, "final_alpha_grad")
    golden.close(head(x_val, texts), "final_val_logits")
    assert best[1] == int(golden.best_epoch)
    golden.close(best[2], "best_test_logits")
    golden.all_used()


# --------------------------------------------------------------------------------------------------------- Tip-Adapter


def test_tip_adapter(monkeypatch):
    golden = Golden("tip")
    recipe = golden.recipe["config"]
    monkeypatch.setattr(tip_adapter, "STEPS", tuple(recipe["search_step"]))
    texts = golden.texts(golden.text_weights.T)
    x_val, x_test = (F.normalize(rows, dim=-1) for rows in (golden.x_val, golden.x_test))
    keys, y = Crops(averaged=True).merged(golden.views, golden.y)
    golden.close(keys.T, "cache_keys")
    golden.close(texts.logits(x_val), "zs_val_logits")
    golden.close(texts.logits(x_test), "zs_test_logits")
    settings = {"alpha": recipe["init_alpha"], "beta": recipe["init_beta"]}
    settings |= dict(zip(("search_beta", "search_alpha"), map(float, recipe["search_scale"]), strict=True))
    head = TipAdapter(**settings).head(task_of(keys, y, len(texts.names)), texts)
    golden.close(head.values, "cache_values")
    golden.close(head(x_val, texts), "tip_val_logits_init")
    task = task_of(keys, y, len(texts.names), validation=(x_val, golden.y_val))
    head = TipAdapter(**settings).head(task, texts)
    golden.close(head.beta, "tip_best_beta")
    golden.close(head.alpha, "tip_best_alpha")
    golden.close(head(x_test, texts), "tip_test_logits_best")

    epochs, size = recipe["train_epoch"], golden.recipe["batch_size"]
    method = TipAdapterF(**settings, lr=recipe["lr"], epochs=epochs, batch_size=size)
    learner = method.learner(task, texts)
    head, schedule, k, kept, tested = learner.module, _schedule(learner), 0, [], []
    for views in F.normalize(golden.train_views, dim=-1):
        for batch in zip(views.split(size), y.split(size), strict=True):
            if k == 0:
                golden.close(head(batch[0], texts), "F_train_logits0")
            loss, rate = step(learner, schedule, *batch)
            golden.close(loss, "F_loss", k)
            golden.close(rate, "F_lr", k)
            golden.close(head.keys, "F_keys_hist", k)
            k += 1
        tested.append(float(accuracy(head(x_test, texts), golden.y_test)))
        kept.append(head.keys.detach().clone())
    assert k == len(golden.F_loss)
    golden.close(head(x_test, texts), "F_test_logits_last_epoch")
    # the authors choose the epoch on test pictures, which the method does not see
    best = tested.index(max(tested))
    assert best == int(golden.F_best_epoch)
    golden.close(kept[best], "F_best_keys")
    set_parameters(learner, keys=kept[best])
    learner.training_ended()
    golden.close(head.beta, "F_best_beta")
    golden.close(head.alpha, "F_best_alpha")
    golden.close(head(x_test, texts), "F_test_logits_best")
    golden.all_used()


# -------------------------------------------------------------------------------------------------------------- ProKeR


def test_proker():
    golden = Golden("proker")
    texts = golden.texts(golden.text_weights.T, scale=1.0)
    x, x_test, y = F.normalize(golden.x, dim=-1), F.normalize(golden.x_test, dim=-1), golden.y
    beta, ridge = float(golden.beta), float(golden.lmbda)
    assert FIXED[golden.recipe["shots"]] == (beta, ridge) == tuple(golden.recipe["fixed"].values())
    assert len(golden.x_val) == len(golden.y_val)  # not searched in this file
    golden.close(kernel(x, x, beta), "K_SS")
    golden.close(kernel(x_test, x, beta), "K_XS")
    golden.close(coefficients(kernel(x, x, beta), residuals(x, y, texts), ridge), "coef")
    head = ProKeR().head(task_of(x, y, len(texts.names)), texts)
    golden.close(head(x_test, texts), "test_logits")
    assert len(golden.y_test) == len(x_test)
    golden.all_used()


# -------------------------------------------------------------------------------------------------------- CLIP-Adapter


@pytest.mark.parametrize("unit", [False, True])  # the authors' features are not normalised, those of a task are
def test_clip_adapter(unit):
    golden = Golden("clipadapter")
    texts = golden.texts(golden.base_text, float(golden.logit_scale))
    x, x_test, y = golden.x, golden.x_test, golden.y
    assert len(golden.y_test) == len(x_test)
    length = x.norm(dim=-1, keepdim=True) if unit else 1
    if unit:
        x, x_test = F.normalize(x, dim=-1), F.normalize(x_test, dim=-1)
    settings = {"ratio": float(golden.ratio), "reduction": golden.recipe["reduction"]}
    learner = learner_of(CLIPAdapter(**settings, **dassl_settings(golden.recipe)), x, y, texts)
    adapter = learner.module.adapter
    with torch.no_grad():
        adapter.down.weight.copy_(golden.W1_0)
        adapter.up.weight.copy_(golden.W2_0)
    ratio = float(golden.ratio)
    golden.close(length * (adapter(x) - (1 - ratio) * x) / ratio, "adapter_out0")
    golden.close(learner.module(x, texts), "logits0")
    golden.close(learner.module(x_test, texts), "test_logits0")
    losses, gradients = probe(learner, x, y)
    golden.close(losses.task, "loss0")
    golden.close(gradients["adapter.down.weight"], "grad_W1")
    golden.close(gradients["adapter.up.weight"], "grad_W2")
    schedule = _schedule(learner)
    for k in range(len(golden.loss)):
        loss, rate = step(learner, schedule, x, y)
        golden.close(loss, "loss", k)
        golden.close(rate, "lr", k)
        golden.close(adapter.down.weight, "W1", k)
        golden.close(adapter.up.weight, "W2", k)
    golden.close(learner.module(x_test, texts), "test_logits")
    golden.all_used()


# --------------------------------------------------------------------------------------------------------- cross-modal


def test_cross_modal():
    golden = Golden("xmodal")
    recipe = golden.recipe
    n_classes = len(golden.zs_weights)
    order = torch.stack([torch.nonzero(golden.text_y == label)[:, 0] for label in range(n_classes)], dim=1)
    texts = Texts([str(i) for i in range(n_classes)], golden.text_x[order], float(np.exp(recipe["logit"])))
    x, x_val, x_test = (F.normalize(rows, dim=-1) for rows in (golden.x, golden.x_val, golden.x_test))
    text_x, y = F.normalize(golden.text_x, dim=-1), golden.y
    settings = {name: recipe[name] for name in ("lr", "weight_decay")}
    settings |= {"warmup_steps": recipe["warmup_iter"], "warmup_lr": recipe["warmup_min_lr"]}
    learner = learner_of(CrossModal(**settings, epochs=recipe["max_iter"]), x, y, texts)
    head, schedule = learner.module, _schedule(learner)
    golden.close(head.weight, "zs_weights")
    golden.close(head(x, texts), "logits0")
    best = (-1.0, -1, None)
    batches = zip(golden.img_batches, golden.text_batches, strict=True)
    for k, (images, words) in enumerate(batches):
        rows, labels = torch.cat([x[images], text_x[words]]), torch.cat([y[images], golden.text_y[words]])
        logits = head(rows, texts)
        if k == 0:
            golden.close(logits, "logits_step0")
        halves = [F.cross_entropy(*half) for half in zip(logits.split(4), labels.split(4), strict=True)]
        loss = (halves[0] + halves[1]) / 2  # as the method has it, whose texts are all of them
        golden.close(loss, "loss", k)
        golden.close(torch.tensor(learner.optimizer.param_groups[0]["lr"], dtype=torch.float64), "lr", k)
        learner.optimizer.zero_grad()
        learner.optimizer.backward_and_update(loss)
        schedule.step()
        golden.close(head.weight, "W_hist", k)
        found = float(accuracy(head(x_val, texts), golden.y_val))
        if k % recipe["eval_freq"] == 0 and found > best[0]:
            best = found, k, head.weight.detach().clone()
    assert best[1] == int(golden.best_iter)
    golden.close(best[2], "best_W")
    set_parameters(learner, weight=best[2])
    golden.close(head.classifier(texts)(x_test), "test_logits")
    head.wise = recipe["wiseft_ratio"]
    golden.close(head.linear(texts)[0], "W_wiseft")
    golden.close(head.classifier(texts)(x_test), "test_logits_wiseft")
    assert len(golden.y_test) == len(x_test)
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


# -------------------------------------------------------------------------------------------------------------- ProLIP


def tower(projection, bias=None):
    """A model whose image tower ends with this projection, as ViTs or as ResNets have it."""
    if bias is None:
        return SimpleNamespace(visual=SimpleNamespace(proj=nn.Parameter(projection)))
    linear = nn.Linear(*projection.shape, dtype=projection.dtype)
    with torch.no_grad():
        linear.weight.copy_(projection.T)
        linear.bias.copy_(bias)
    return SimpleNamespace(visual=SimpleNamespace(attnpool=SimpleNamespace(c_proj=linear)))


@pytest.mark.parametrize("unit", [False, True])  # the authors' features are not normalised, those of a task are
def test_prolip(unit):
    golden = Golden("prolip")
    recipe = golden.recipe
    texts = golden.texts(golden.text_weights.T)
    views, x_test, y = golden.views, golden.x_test, golden.y
    if unit:
        views, x_test = F.normalize(views, dim=-1), F.normalize(x_test, dim=-1)
    task = task_of(views[0], y, len(texts.names), model=tower(golden.P0))
    learner = ProLIP(lr=recipe["lr"], epochs=recipe["epochs"]).learner(task, texts)
    head, schedule = learner.module, _schedule(learner)
    assert head.penalty == recipe["lambda_used"]
    assert golden.view_index.tolist() == [(e + 1) % len(views) for e in range(recipe["epochs"])]
    for e, view in enumerate(golden.view_index.tolist()):
        x = views[view]
        golden.close(head.weight, "hist_P", e)
        losses, gradients = probe(learner, x, y)
        golden.close(losses.terms["cross_entropy"], "loss_ce", e)
        golden.close(losses.terms["penalty"] / head.penalty, "loss_sq", e)
        if e == 0:
            golden.close(head(x, texts), "logits0")
        if e < 2:
            golden.close(gradients["weight"], f"grad{e}")
        _, rate = step(learner, schedule, x, y)
        golden.close(rate, "lr", e)
    golden.close(head.weight, "final_P")
    golden.close(head(x_test, texts), "test_logits")
    assert len(golden.y_test) == len(x_test)

    # the other form, of ResNets, whose projection has a bias
    with_bias = ProLIP().head(task_of(views[0], y, len(texts.names), model=tower(golden.P0, golden.bias)), texts)
    rows = F.normalize(torch.cat([golden.x_test, torch.ones(len(x_test), 1).double()], dim=1), dim=-1)
    z = F.normalize(golden.x_test @ golden.P0 + golden.bias, dim=-1)
    assert_close(with_bias(rows, texts), texts.logits(z), "formula", torch.float64)
    golden.all_used()
