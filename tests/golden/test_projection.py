"""The update alone, against the authors' released code: golden/projection_*."""

import json

import numpy as np
import pytest
import torch

import prograd_fast as pf
from tests.paths import GOLDEN
from tests.tolerances import assert_close

OPTIMIZERS = {
    "sgd": (pf.ProGradSGD, torch.optim.SGD),
    "adamw": (pf.ProGradAdamW, torch.optim.AdamW),
}


def give_gradients(opt, params, task, general):
    """Hand given gradients to the optimizer through its public way in: losses that are linear in the parameters."""
    opt.zero_grad()
    opt.backward(
        sum((p * g).sum() for p, g in zip(params, task, strict=True)),
        sum((p * g).sum() for p, g in zip(params, general, strict=True)),
    )


def start_values(golden, recipe, name):
    """Where the authors' run began.

    The arrays `param_i` were saved by reference, after both runs, so they hold the last AdamW values (checked below).
    The AdamW run went on from where the SGD run ended, and the SGD run's start follows from its first step,
    p1 = p0 - lr (g + wd p0); its first step is therefore no test, its other steps and all of AdamW's are.
    """
    last = recipe["steps"] - 1
    starts = []
    for i in range(len(recipe["shapes"])):
        assert np.array_equal(golden[f"param_{i}"], golden[f"adamw_param_{last}_{i}"])
        if name == "adamw":
            start = golden[f"sgd_param_{last}_{i}"].copy()
        else:
            lr, wd = recipe["sgd"]["lr"], recipe["sgd"]["weight_decay"]
            start = (golden[f"sgd_param_0_{i}"] + lr * golden[f"sgd_grad_0_{i}"]) / (1 - lr * wd)
        starts.append(torch.nn.Parameter(torch.from_numpy(start)))
    return starts


# a: λ = 1, several tensors, among them one of a single element; b: λ = 0.8 and a three-dimensional tensor
@pytest.mark.parametrize("case", ["a", "b"])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["own class", "wrapper"])
def test_authors_update(case, name, wrapped):
    golden = np.load(GOLDEN / f"projection_{case}.npz")
    recipe = json.loads(str(golden["recipe"]))
    n = len(recipe["shapes"])
    params = start_values(golden, recipe, name)
    own, plain = OPTIMIZERS[name]
    opt = (
        pf.ProGrad(plain(params, **recipe[name]), lambda_=recipe["lambda_"])
        if wrapped
        else own(params, **recipe[name], lambda_=recipe["lambda_"])
    )
    for s in range(recipe["steps"]):
        task, general = (
            [torch.from_numpy(golden[f"{kind}_grad_{s}_{i}"]) for i in range(n)] for kind in ("task", "general")
        )
        give_gradients(opt, params, task, general)
        for i, p in enumerate(params):
            # a projected single element is a - a = 0: its rounding is that of a
            assert_close(p.grad, golden[f"{name}_grad_{s}_{i}"], "golden projection", torch.float64, scale=task[i])
        opt.step()
        for i, p in enumerate(params):
            # AdamW divides by a root that may be tiny itself and so enlarges that rounding: a trajectory
            assert_close(p, golden[f"{name}_param_{s}_{i}"], "golden trajectory", torch.float64)


@pytest.mark.parametrize("case", ["a", "b"])
def test_golden_files_hold_both_cases(case):
    """The parity above means little unless some tensors conflict and some do not."""
    golden = np.load(GOLDEN / f"projection_{case}.npz")
    recipe = json.loads(str(golden["recipe"]))
    dots = [
        (golden[f"task_grad_{s}_{i}"] * golden[f"general_grad_{s}_{i}"]).sum()
        for s in range(recipe["steps"])
        for i in range(len(recipe["shapes"]))
    ]
    assert min(dots) < 0 < max(dots)
