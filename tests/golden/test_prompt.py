"""Whole prompt-tuning trajectories against the authors' released code (golden/prompt_*, see golden/README.md)."""

import json

import numpy as np
import pytest
import torch

import prograd_fast as pf
from tests.golden.clip import golden_clip
from tests.ops.support import BACKENDS, running_on
from tests.paths import GOLDEN
from tests.tiny_clip import TOKENIZER
from tests.tolerances import assert_close

# shared context from words, SGD; class-specific random context, T = 2, SGD; 16 random tokens, lambda = 0.8, AdamW
CASES = ["unified_sgd", "classspecific_sgd", "random16_adamw"]
# float64: the formulas are the authors'. float32: what users run.
DTYPES = [torch.float64, torch.float32]


class Run:
    """One golden file: its arrays, and the model, inputs and net that its recipe describes."""

    def __init__(self, case: str, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.arrays = np.load(GOLDEN / f"prompt_{case}.npz")
        self.recipe = json.loads(str(self.arrays["recipe"]))
        self.model = golden_clip(self.recipe, dtype)
        self.images, self.labels = self._inputs()
        self.net = pf.clip.PromptedCLIP(
            self.model,
            TOKENIZER,
            self.recipe["class_names"],
            n_ctx=self.recipe["n_ctx"],
            ctx_init=self.recipe["template"].removesuffix(" {}.") if self.recipe["ctx_init"] else None,
            class_specific=self.recipe["csc"],
            class_token_position=self.recipe["class_token_position"],
        )
        if not self.recipe["ctx_init"]:
            self.net.prompt.load_state_dict({"ctx": torch.from_numpy(self.arrays["ctx0"])})
        self.teacher = pf.clip.ZeroShotTeacher(
            self.model, TOKENIZER, self.recipe["class_names"], self.recipe["template"]
        )
        self.criterion = pf.DualLoss(self.recipe["temperature"], general="soft_ce")

    def _inputs(self):
        recipe, arrays = self.recipe, self.arrays
        rng = np.random.default_rng(int(arrays["images_seed"]))
        if not recipe["ctx_init"]:
            assert np.array_equal(0.02 * rng.standard_normal(arrays["ctx0"].shape), arrays["ctx0"])
        size = recipe["arch"]["image_resolution"]
        images = rng.standard_normal((recipe["steps"], recipe["batch"], 3, size, size))
        labels = rng.integers(0, len(recipe["class_names"]), (recipe["steps"], recipe["batch"]))
        assert np.array_equal(labels, arrays["labels"])
        return torch.from_numpy(images).to(self.dtype), torch.from_numpy(labels)

    def optimizer(self):
        recipe = self.recipe
        settings = {"lr": recipe["lr"], "weight_decay": recipe["weight_decay"], "lambda_": recipe["lambda_"]}
        if recipe["optimizer"] == "sgd":
            return pf.ProGradSGD(self.net.prompt.parameters(), momentum=0.9, **settings)
        return pf.ProGradAdamW(self.net.prompt.parameters(), **settings)

    @property
    def starts_as_teacher(self):
        """The context starts as the template's words and nothing else: both logits are the same, bit for bit."""
        return np.array_equal(self.arrays["first_logits"], self.arrays["first_teacher_logits"])

    def close(self, actual, name, step=None, scale=None):
        expected = self.arrays[name] if step is None else self.arrays[name][step]
        assert_close(actual, expected, "golden trajectory", self.dtype, scale)


@pytest.fixture(params=CASES)
def case(request):
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def run(request, case):
    return Run(case, request.param)


def test_prompts(run):
    """The same words at the same places, and the same start of the context."""
    token_ids = run.net.encoder.token_ids
    length = token_ids.shape[1]
    expected = torch.from_numpy(run.arrays["tokenized_prompts"])
    assert torch.equal(token_ids, expected[:, :length])
    assert length == 1 + int(expected.argmax(1).max())  # cut behind the longest prompt's end of text
    run.close(run.net.prompt.ctx, "ctx0")


def test_first_step(run):
    """Features, logits and the two gradients before anything has moved."""
    ctx = run.net.prompt.ctx
    run.close(run.net.encoder(run.net.prompt.ctx[None])[0], "text_features0")
    run.close(run.teacher.class_features, "text_features_zs")
    features = run.net.image_features(run.images[0])
    student, teacher = run.net.logits(features), run.teacher.logits(features)
    run.close(student, "first_logits")
    run.close(teacher, "first_teacher_logits")
    task, general = run.criterion(student, teacher, run.labels[0])
    run.close(torch.autograd.grad(task, ctx, retain_graph=True)[0], "first_grad_xe")
    # A student that starts as the teacher has no general gradient but rounding: judged by the task gradient's size.
    scale = run.arrays["first_grad_xe" if run.starts_as_teacher else "first_grad_kl"]
    run.close(torch.autograd.grad(general, ctx)[0], "first_grad_kl", scale=scale)


@pytest.mark.parametrize("backend", BACKENDS)  # Triton: tests/gpu/triton/interpreted/golden.py
def test_trajectory(run, backend):
    with running_on(backend):
        check_trajectory(run)


def check_trajectory(run):
    """Every step's losses, cosine, applied gradient and context, each step from the step before."""
    opt = run.optimizer()
    for step in range(run.recipe["steps"]):
        features = run.net.image_features(run.images[step])
        task, general = run.criterion(run.net.logits(features), run.teacher.logits(features), run.labels[step])
        run.close(task, "xe_loss", step)
        run.close(general, "kl_loss", step)
        if step == 0 and run.starts_as_teacher:
            # The general gradient is rounding noise, and so is the direction that it projects off: the authors' noise
            # is taken, through a loss that is linear in the context.
            ctx = run.net.prompt.ctx
            general = (ctx * torch.from_numpy(run.arrays["first_grad_kl"]).to(ctx)).sum()
        opt.zero_grad()
        opt.backward(task, general)
        opt.project()
        run.close(run.net.prompt.ctx.grad, "applied_grad", step)
        opt.step()
        # reported in float32 whatever the parameters are
        assert_close(opt.conflict.cosine[0], run.arrays["cosine"][step], "golden trajectory", torch.float32)
        run.close(run.net.prompt.ctx, "ctx", step)


def test_golden_files_hold_both_cases():
    """The parity above means little unless some steps were projected and some were not."""
    cosines = np.concatenate([np.load(GOLDEN / f"prompt_{case}.npz")["cosine"] for case in CASES])
    assert cosines.min() < 0 < cosines.max()
