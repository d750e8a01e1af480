"""The authors' trajectories of a prompt, golden/prompt_*, and the same steps by this library."""

import json

import numpy as np
import torch

import prograd_fast as pf
from tests.golden.clip import golden_clip
from tests.paths import GOLDEN
from tests.tiny_clip import TOKENIZER
from tests.tolerances import assert_close

# shared context from words, SGD; class-specific random context, T = 2, SGD; 16 random tokens, lambda = 0.8, AdamW
CASES = ["unified_sgd", "classspecific_sgd", "random16_adamw"]


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
        settings["noise_floor"] = 0.0  # the authors project off rounding noise too
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
        run.close(run.net.prompt.ctx.grad, "applied_grad", step)
        opt.step()
        # reported in float32 whatever the parameters are
        assert_close(opt.conflict.cosine[0], run.arrays["cosine"][step], "golden trajectory", torch.float32)
        run.close(run.net.prompt.ctx, "ctx", step)
