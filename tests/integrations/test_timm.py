"""timm's factory makes the optimizers by name, with its parameter groups and layer decay."""

import logging
from typing import Any

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import CosineLRScheduler

import prograd_fast as pf
from prograd_fast.integrations.timm import register
from tests.integrations.support import batches, both, check, numbers, student

DATA = batches(8)
OURS = {"progradadamw": "adamw", "progradsgd": "sgd"}

register()


def groups(opt: Any) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in group.items() if name not in ("params", "lambda_")}
        | {"shapes": [p.shape for p in group["params"]]}
        for group in opt.param_groups
    ]


@pytest.mark.parametrize("settings", [{"weight_decay": 0.05}, {"weight_decay": 0.05, "layer_decay": 0.7}])
@pytest.mark.parametrize("name", OURS)
def test_groups_are_those_of_timms_own(name: str, settings: dict[str, float]) -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=4)
    ours = create_optimizer_v2(model, name, lr=0.01, lambda_=0.8, **settings)  # type: ignore[arg-type]
    assert isinstance(ours, pf.ProGradAdamW | pf.ProGradSGD)
    assert groups(ours) == groups(create_optimizer_v2(model, OURS[name], lr=0.01, **settings))  # type: ignore[arg-type]
    assert len(ours.param_groups) > 1
    assert {group["lambda_"] for group in ours.param_groups} == {0.8}


@pytest.mark.parametrize("name", OURS)
def test_training(name: str) -> None:
    """With layer decay and timm's schedule; the bare loop has its optimizer from the constructor, and scaled rates."""

    def run(make_optimizer: Any, **options: Any) -> torch.Tensor:
        model = student()
        opt = make_optimizer(model, **options)
        schedule = CosineLRScheduler(opt, t_initial=len(DATA))
        for i, (x, labels) in enumerate(DATA):
            opt.zero_grad()
            opt.backward(*both(model(x), x, labels))
            opt.step()
            schedule.step(i + 1)
        return numbers(model)

    def factory(model: Any, **options: Any) -> Any:
        return create_optimizer_v2(model, name, lr=0.05, weight_decay=0.1, layer_decay=0.5, **options)

    kind = pf.ProGradAdamW if name == "progradadamw" else pf.ProGradSGD
    options = {} if name == "progradadamw" else {"momentum": 0.9, "nesterov": True}

    def by_hand(model: Any, **others: Any) -> Any:
        return kind(factory(model).param_groups, lr=0.05, **options, **others)

    assert torch.equal(run(factory), run(by_hand))
    assert not torch.equal(run(factory), run(factory, lambda_=0.0))


def test_plain_groups() -> None:
    def trained(make: Any) -> torch.Tensor:
        model = student()
        lambda_ = make(student().parameters()).lambda_
        opt: Any = create_optimizer_v2(model.parameters(), "progradadamw", lr=0.02, weight_decay=0.01, lambda_=lambda_)
        for x, labels in DATA:
            opt.zero_grad()
            opt.backward(*both(model(x), x, labels))
            opt.step()
        return numbers(model)

    check(trained, lambda params, **options: pf.ProGradAdamW(params, lr=0.02, **options), DATA)


def test_registering_again_is_quiet(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        register()
    assert not caplog.records
    assert set(OURS) <= set(list_optimizers())
