"""The tasks that the recipes of golden files describe, and a method at work on them; see golden/README.md."""

import json

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from prograd_fast.methods import CoCoOp, GradientLearner, Method, Task
from tests.golden.clip import golden_clip
from tests.paths import GOLDEN
from tests.tiny_clip import TOKENIZER
from tests.tolerances import assert_close


class Golden:
    """One golden file of a method: its arrays, recipe, model and inputs.

    Attributes:
        images: (steps, B, 3, H, W).
        labels: (steps, B).
        rng: the generator after images and labels.
    """

    def __init__(self, name: str) -> None:
        self.arrays = np.load(GOLDEN / f"{name}.npz")
        self.recipe = json.loads(str(self.arrays["recipe"]))
        if "arch" not in self.recipe:
            return
        self.model = golden_clip(self.recipe)
        self.rng = np.random.default_rng(int(self.arrays["images_seed"]))
        size, steps = self.recipe["arch"]["image_resolution"], self.recipe["steps"]
        self.images = torch.from_numpy(self.rng.standard_normal((steps, self.recipe["batch"], 3, size, size)))
        labels = self.rng.integers(0, len(self.recipe["class_names"]), (steps, self.recipe["batch"]))
        assert np.array_equal(labels, self.arrays["labels"])
        self.labels = torch.from_numpy(labels)

    def tensor(self, name: str, step: int | None = None) -> Tensor:
        """An array, or one step's."""
        return torch.from_numpy(np.asarray(self.arrays[name] if step is None else self.arrays[name][step]))

    def features(self, step: int) -> Tensor:
        """Unit image features, with a graph if the image tower has something to train."""
        return F.normalize(self.model.encode_image(self.images[step]), dim=-1)

    def start(self, method: type[Method], **settings) -> GradientLearner:
        """The method on the file's task with its SGD, before any step."""
        names = self.recipe["class_names"]
        settings = {**self.recipe["sgd"], "epochs": self.recipe["steps"], **settings}
        with torch.no_grad():
            task = Task(self.model, TOKENIZER, names, self.features(0), self.labels[0])
        return method(**settings).start(task)

    def close(self, actual: Tensor, name: str, step: int | None = None) -> None:
        """Fail unless the array, or one step's, is reproduced."""
        assert_close(actual, self.tensor(name, step), "golden trajectory", torch.float64)


def step_by_hand(learner: GradientLearner, image_features: Tensor, labels: Tensor) -> tuple:
    """One step, for its losses, its raw and its applied gradients by parameter name."""
    losses = learner.losses(image_features, labels)
    names, params = zip(*learner.module.named_parameters(), strict=True)
    raw = dict(zip(names, torch.autograd.grad(losses.task, params, retain_graph=True), strict=True))
    learner.optimizer.zero_grad()
    learner.optimizer.backward(losses.task, losses.general)
    applied = {name: p.grad.clone() for name, p in zip(names, params, strict=True)}
    learner.optimizer.step()
    return losses, raw, applied


def words(golden):
    """The settings of the file's context."""
    return {"ctx_init": golden.recipe["ctx_init"] or None, "n_ctx": golden.recipe["n_ctx"]}


def set_start(learner, golden, names):
    """Start values, which the authors drew; `names`: parameter -> name in the file."""
    with torch.no_grad():
        for name, p in learner.module.named_parameters():
            p.copy_(golden.tensor(f"param0_{names[name]}").view_as(p))


def check_parameters(learner, golden, names, step):
    """Fail unless all parameters after a step are reproduced."""
    for name, p in learner.module.named_parameters():
        golden.close(p, f"param_{names[name]}", step)


META_NET = {
    "ctx": "ctx",
    "meta_net.0.weight": "meta_net.linear1.weight",
    "meta_net.0.bias": "meta_net.linear1.bias",
    "meta_net.2.weight": "meta_net.linear2.weight",
    "meta_net.2.bias": "meta_net.linear2.bias",
}


COCOOP = ["cocoop_words", "cocoop_random_b1"]  # three pictures at a time; one


def check_cocoop(name):
    """Fail unless every step of a file of CoCoOp is reproduced on the active backend."""
    golden = Golden(name)
    learner = golden.start(CoCoOp, **words(golden))
    set_start(learner, golden, META_NET)
    for step in range(golden.recipe["steps"]):
        x = golden.features(step).detach()
        golden.close(learner.scores(golden.recipe["class_names"])(x), "logits", step)
        losses, gradients, _ = step_by_hand(learner, x, golden.labels[step])
        golden.close(losses.task, "loss", step)
        for name, gradient in gradients.items():
            golden.close(gradient, f"grad_{META_NET[name]}", step)
        check_parameters(learner, golden, META_NET, step)
