"""The losses of neighbouring methods against their authors' released code (golden/README.md)."""

import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import prograd_fast as pf
from prograd_fast import functional
from tests.golden.clip import golden_clip
from tests.ops.support import BACKENDS, running_on
from tests.paths import GOLDEN
from tests.tiny_clip import TOKENIZER
from tests.tolerances import assert_close


class Golden:
    """Arrays as tensors, and the recipe."""

    def __init__(self, name: str) -> None:
        self.arrays = np.load(GOLDEN / f"{name}.npz")
        self.recipe: dict[str, Any] = json.loads(str(self.arrays["recipe"]))

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    def leaf(self, name: str) -> Tensor:
        return self[name].clone().requires_grad_()

    def close(self, actual: Tensor, name: str, step: int | None = None) -> None:
        expected = self[name] if step is None else self[name][step]
        assert_close(actual, expected, "golden loss", torch.float64)


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Any:
    with running_on(request.param):
        yield


# ---- xERM


def check_xerm(golden: Golden, criterion: pf.losses.XERM, counterfactual: Tensor | None = None) -> None:
    student = golden.leaf("student_logits")
    factual = golden["te_logits" if counterfactual is not None else "factual_logits"]
    task, general = criterion(student, factual, golden["labels"], counterfactual)
    golden.close(task + general, "loss")
    golden.close(torch.autograd.grad(task + general, student)[0], "grad_student_logits")


def test_xerm_pc() -> None:
    golden = Golden("xerm_pc")
    offset = pf.losses.prior_offset(golden["prior_train"], golden["prior_test"])
    golden.close(golden["factual_logits"] + offset, "counterfactual_logits")
    check_xerm(golden, pf.losses.XERM(offset, golden.recipe["gamma"], golden.recipe["eps"]))


@pytest.mark.parametrize("name", ["xerm_ride", "xerm_ride_plain"])  # with margins, without
def test_xerm_ride(name: str) -> None:
    golden = Golden(name)
    recipe, margins = golden.recipe, None
    offset = pf.losses.prior_offset(golden["prior_train"], golden["prior_test"], train_power=2)
    golden.close(golden["factual_logits"] + offset, "counterfactual_logits")
    if recipe["ldam"]:
        golden.close(pf.losses.ldam_margins(golden["class_counts"].double(), recipe["max_m"], 1.0), "margins")
        margins = pf.losses.ldam_margins(golden["class_counts"].double(), recipe["max_m"], recipe["s"])
    check_xerm(golden, pf.losses.XERM(offset, recipe["gamma"], recipe["eps"], recipe["T"], margins))


def test_xerm_tde() -> None:
    golden = Golden("xerm_tde")
    recipe = golden.recipe
    settings = {
        "tau": recipe["tau"],
        "alpha": recipe["alpha"],
        "norm_offset": recipe["norm_gamma"],
        "heads": recipe["num_head"],
    }
    teacher = golden["teacher_features"], golden["teacher_weight"]
    factual = pf.losses.causal_norm_logits(*teacher, **settings)
    counterfactual = pf.losses.causal_norm_logits(*teacher, golden["mean_feature"], **settings)
    golden.close(factual, "te_logits")
    golden.close(counterfactual, "tde_logits")
    criterion = pf.losses.XERM(gamma=recipe["gamma"], eps=recipe["eps"])
    check_xerm(golden, criterion, counterfactual)

    features, weight = golden.leaf("student_features"), golden.leaf("student_weight")
    student = pf.losses.causal_norm_logits(features, weight, **settings)
    golden.close(student, "student_logits")
    task, general = criterion(student, factual, golden["labels"], counterfactual)
    for gradient, name in zip(
        torch.autograd.grad(task + general, (features, weight)), ("features", "weight"), strict=True
    ):
        golden.close(gradient, f"grad_student_{name}")


# ---- LASP


@pytest.mark.parametrize("name", ["lasp_clipped", "lasp_virtual"])  # the latter with classes that have no pictures
def test_text_to_text(name: str) -> None:
    """Every step's text loss from the context before it; the whole loss and its gradient at the first step."""
    golden = Golden(name)
    recipe = golden.recipe
    names, known, steps = recipe["all_class_names"], len(recipe["class_names"]), recipe["steps"]
    rng = np.random.default_rng(int(golden["images_seed"]))
    images = torch.from_numpy(rng.standard_normal((steps, recipe["batch"], 3, 32, 32)))
    rng.integers(0, known, (steps, recipe["batch"]))  # the labels
    noise = torch.from_numpy(rng.standard_normal((steps, *golden["class_text_features"].shape)))
    assert torch.equal(noise[0], golden["noise_step0"])

    model = golden_clip(recipe)
    token_ids = golden["tokenized_prompts_all"]
    embeddings = model.token_embedding(token_ids).detach()
    image_features = F.normalize(model.encode_image(images[0]), dim=1).detach()
    criterion = pf.losses.TextToText(float(model.logit_scale.detach().exp()))
    templates = F.normalize(golden["class_text_features"], dim=2)
    for step in range(steps):
        context, correction = (
            golden.leaf(f"param0_prompt_learner.{p}")
            if step == 0
            else golden[f"param_prompt_learner.{p}"][step - 1].clone().requires_grad_()
            for p in ("ctx", "w")
        )
        prompts = pf.reference.assemble_prompts(embeddings, context, [0] * len(names))  # at the end: any name length
        features = F.normalize(pf.reference.encode_prompts(model, prompts, token_ids) + correction, dim=1)
        hand_written = templates + recipe["noise_std"] * noise[step] if golden["noisy"][step] else templates
        text_loss = criterion(features, hand_written)
        golden.close(text_loss, "text_loss", step)
        if step == 0:  # later, the image tower has moved, too
            logits = criterion.scale * image_features @ features[:known].T
            loss = F.cross_entropy(logits, golden["labels"][0]) + recipe["alpha"] * text_loss
            golden.close(loss, "loss", 0)
            for p, gradient in zip(("ctx", "w"), torch.autograd.grad(loss, (context, correction)), strict=True):
                golden.close(gradient, f"raw_grad_prompt_learner.{p}")


# ---- variational prompts


def test_sampled_cross_entropy() -> None:
    """Every step's prediction, loss and gradients of the unconditional form, from the parameters before it."""
    golden = Golden("vpt_unconditional")
    recipe = golden.recipe
    model = golden_clip(recipe)
    net = pf.clip.PromptedCLIP(model, TOKENIZER, recipe["class_names"], recipe["n_ctx"], recipe["ctx_init"])
    for step in range(recipe["steps"]):
        context, mean, log_variance = (
            (golden[f"param0_{name}"] if step == 0 else golden[f"param_{name}"][step - 1]).clone().requires_grad_()
            for name in ("ctx", "mean_posterior", "std_posterior")
        )
        samples = mean + golden["noise"][step] * (0.5 * log_variance).exp()  # (S, 1, d)
        features = net.class_features(context + samples)
        logits = model.logit_scale.exp() * golden["image_features"][step] @ features.mT
        golden.close(functional.sampled_log_probs(logits), "prediction", step)
        loss = pf.losses.SampledCrossEntropy()(logits, golden["labels"][step])
        loss = loss + recipe["kl_weight"] * golden["kl"][step]
        golden.close(loss, "loss", step)
        golden.close(torch.autograd.grad(loss, context)[0], "grad_ctx", step)  # the KL term does not depend on it


# ---- SRD


def test_srd() -> None:
    golden = Golden("srd_srd")
    recipe = golden.recipe
    features, weight, scale, bias = (
        golden.leaf(name)
        for name in ("student_features", "connector_weight", "connector_bn_weight", "connector_bn_bias")
    )
    connected = F.batch_norm(F.conv2d(features, weight), None, None, scale, bias, training=True).relu()
    classifier = golden["teacher_weight"], golden["teacher_bias"]
    teacher = F.linear(golden["teacher_features"].mean((2, 3)), *classifier)
    cross = F.linear(connected.mean((2, 3)), *classifier)
    golden.close(teacher, "teacher_logits")
    golden.close(cross, "cross_logits")
    golden.close(functional.squared_error(cross, teacher), "logit_loss")
    only_features = pf.losses.SRD()(connected, golden["teacher_features"], cross.detach(), cross.detach())
    golden.close(only_features, "feature_loss")

    assert (recipe["alpha"], recipe["beta"], recipe["gamma"]) == (0.0, 1.0, 1.0)
    student = golden["student_logits"][: len(golden["labels"])]
    criterion = pf.losses.SRD(recipe["feature_factor"])
    distillation = criterion(connected, golden["teacher_features"], cross, teacher)
    golden.close(F.cross_entropy(student, golden["labels"]) + distillation, "total_loss")
    names = ("student_features", "connector_weight", "connector_bn_weight", "connector_bn_bias")
    for name, gradient in zip(names, torch.autograd.grad(distillation, (features, weight, scale, bias)), strict=True):
        golden.close(gradient, f"grad_{name}")
