"""Hugging Face's Trainer with `ProGradTrainer` is the bare loop; it evaluates and resumes as it always does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import prograd_fast as pf
from prograd_fast.integrations.transformers import ProGradTrainer
from tests.integrations.support import OPTIMIZERS, batches, both, check, kinds, numbers, student
from tests.optim.frameworks import accelerators_forgotten

DATA = batches(8)
ROWS = [{"x": x, "labels": label} for xs, labels in DATA for x, label in zip(xs, labels, strict=True)]


@pytest.fixture(autouse=True)
def _no_accelerator() -> Iterator[None]:
    with accelerators_forgotten():
        yield


class Model(nn.Module):
    """A model that returns a dictionary, as those of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = student()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.layers(x)}


class Ours(ProGradTrainer):
    def compute_losses(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Any]:
        outputs = model(**inputs)
        return *both(outputs["logits"], inputs["x"], inputs["labels"]), outputs

    def get_train_dataloader(self) -> DataLoader[Any]:  # in order, as the bare loop
        return self.accelerator.prepare(DataLoader(ROWS, batch_size=5))  # type: ignore[arg-type]


def trainer(folder: Path, make: Any = None, model: Any = None, cls: type[Trainer] = Ours, **settings: Any) -> Trainer:
    usual = {"report_to": "none", "use_cpu": True, "num_train_epochs": 1, "lr_scheduler_type": "constant"}
    quiet = {"disable_tqdm": True, "logging_strategy": "no", "save_strategy": "no", "dataloader_pin_memory": False}
    arguments = TrainingArguments(str(folder), **(usual | quiet | {"max_grad_norm": 0.5} | settings))
    model = Model() if model is None else model
    options = {} if make is None else {"optimizers": (make(model.parameters()), None)}
    return cls(model, arguments, train_dataset=ROWS, eval_dataset=ROWS, **options)


def train(folder: Path, make: Any, **settings: Any) -> Tensor:
    with accelerators_forgotten():
        fitted = trainer(folder, make, **settings)
        fitted.train()
        return numbers(fitted.model)


@kinds
def test_clips(kind: str, tmp_path: Path) -> None:
    check(lambda make: train(tmp_path, make), OPTIMIZERS[kind], DATA, clip=0.5)


@kinds
def test_accumulates(kind: str, tmp_path: Path) -> None:
    """The sum of two micro-batches is projected, not each."""

    def trained(make: Any) -> Tensor:
        return train(tmp_path, make, gradient_accumulation_steps=2)

    check(trained, OPTIMIZERS[kind], DATA, accumulate=2, clip=0.5)


def test_bfloat16(tmp_path: Path) -> None:
    def trained(make: Any) -> Tensor:
        return train(tmp_path, make, bf16=True)

    check(trained, OPTIMIZERS["adamw"], DATA, clip=0.5, autocast=torch.bfloat16)


def test_class_and_arguments_of_the_optimizer(tmp_path: Path) -> None:
    """Trainer makes the optimizer, with its own groups; without weight decay they are one."""

    def trained(make: Any) -> Tensor:
        lambda_ = make([nn.Parameter(torch.zeros(1))]).lambda_
        with accelerators_forgotten():
            chosen = (pf.ProGradAdamW, {"lr": 0.02, "lambda_": lambda_})
            usual = trainer(tmp_path, weight_decay=0.01)
            ours = Ours(usual.model, usual.args, train_dataset=ROWS, optimizer_cls_and_kwargs=chosen)
            ours.train()
            assert [group["weight_decay"] for group in ours.optimizer.param_groups] == [0.01, 0.0]
            return numbers(ours.model)

    def make(params: Any, **options: Any) -> Any:
        params = list(params)
        weights, biases = [p for p in params if p.ndim > 1], [p for p in params if p.ndim < 2]
        return pf.ProGradAdamW([{"params": weights}, {"params": biases, "weight_decay": 0.0}], lr=0.02, **options)

    check(trained, make, DATA, clip=0.5)


def test_evaluates_the_task_loss(tmp_path: Path) -> None:
    fitted = trainer(tmp_path, OPTIMIZERS["sgd"])
    found = fitted.evaluate()
    x, labels = (torch.stack([row[name] for row in ROWS]) for name in ("x", "labels"))
    with torch.no_grad():
        assert found["eval_loss"] == pytest.approx(both(student()(x), x, labels)[0].item(), rel=1e-5)
    predicted = fitted.predict(ROWS).predictions
    assert predicted.shape == (len(ROWS), 4)


def test_a_resumed_trainer_goes_on(tmp_path: Path) -> None:
    """Trainer's checkpoint has the rule's memory."""

    def make(params: Any) -> Any:
        return pf.ProGradAdamW(params, lr=0.02, rule=pf.rules.GradVac(0.5))

    whole = train(tmp_path / "whole", make)
    first = trainer(tmp_path / "two", make, save_strategy="steps", save_steps=3)
    first.train()
    with accelerators_forgotten():
        second = trainer(tmp_path / "two", make)
        second.train(resume_from_checkpoint=str(tmp_path / "two" / "checkpoint-3"))
        assert torch.equal(numbers(second.model), whole)


def test_one_that_computes_no_losses_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="ProGradTrainer: write compute_losses"):
        trainer(tmp_path, OPTIMIZERS["sgd"], cls=ProGradTrainer).train()


@kinds
def test_it_says_once_that_nothing_was_projected(kind: str, tmp_path: Path) -> None:
    """Trainer itself differentiates the task loss alone."""

    class OneLoss(Ours):
        training_step = Trainer.training_step

    with pytest.warns(UserWarning, match="never got a general gradient") as said:
        trainer(tmp_path, OPTIMIZERS[kind], cls=OneLoss).train()
    assert len([one for one in said if "never got" in str(one.message)]) == 1
