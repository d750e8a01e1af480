"""Guards what a step asks of a GPU: how many kernels it launches, as many at any number of classes, and no answer.

Counted without a GPU: the operators that reach the dispatcher while a step runs on a CPU, in the way that it takes on a
GPU. Each of PyTorch's that computes or moves something is a launch; so is each of ours, but for what `WITHIN` says, if
both backends for GPUs are there. Without Triton each GELU is a launch of its own, two a block; with Triton alone the
backward of attention takes two launches, one more a block.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

import prograd_fast as pf
from prograd_fast.clip.packed import forward, weights
from prograd_fast.clip.packed.encode import Prompts
from prograd_fast.ops.registry import SHORTCUTS
from tests.tiny_clip import TOKENIZER, tiny_clip

LAYERS = 12  # as many as CLIP's text tower has, on which the budgets are
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
NO_KERNEL = {  # allocations, and questions about tensors; views are known by their schema
    "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_unsafe_view", "lift_fresh",
    "is_same_size", "result_type", "promote_types", "detach", "_record_function_enter_new", "_record_function_exit",
    "device", "_reshape_alias",
}  # fmt: skip
HOST_READS = {"_local_scalar_dense", "item", "nonzero", "masked_select", "_unique2", "unique_dim", "equal"}
WITHIN = {"dual_loss": 1, "index_copy": 1}  # beside the first: the sum over the rows; a copy of what is written into


class Launches(TorchDispatchMode):
    """Counts launches by the name of the operator; a read by the host is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = operator._schema.name.partition("::")[2]
        masks = [x for x in args[1] or [] if x is not None] if name in ("index", "index_put", "index_put_") else []
        if name in HOST_READS or any(mask.dtype == torch.bool for mask in masks):
            raise AssertionError(f"{name} waits for the device")
        if not operator.is_view and name not in NO_KERNEL:
            self.by_name[name] += 1 + WITHIN.get(name, 0)
        return operator(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return self.by_name.total()

    @property
    def products(self) -> int:
        return sum(self.by_name[name] for name in PRODUCTS)

    @property
    def own(self) -> int:
        return sum(n for name, n in self.by_name.items() if hasattr(torch.ops.prograd_fast, name))

    @property
    def small(self) -> dict[str, int]:
        """PyTorch's other kernels."""
        ours = torch.ops.prograd_fast
        return {k: n for k, n in self.by_name.items() if k not in PRODUCTS and not hasattr(ours, k)}


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what only a CPU's tensors get: products by oneDNN, pieces for its caches, shortcuts by the dispatcher."""
    monkeypatch.setattr(weights, "_packed", lambda weight: None)
    monkeypatch.setattr(forward, "_CPU_ROWS", 2**40)
    monkeypatch.setattr(Prompts, "first", None)
    for name in list(SHORTCUTS):
        monkeypatch.delitem(SHORTCUTS, name)


def counted(step: Callable[[], object]) -> Launches:
    """The launches of a step that is not the first."""
    step()
    step()
    with Launches() as launches:
        step()
    return launches


def prompt_step(classes: int) -> Callable[[], None]:
    net = pf.clip.PromptedCLIP(
        tiny_clip(layers=LAYERS, dtype=torch.float32), TOKENIZER, [f"cat {i}" for i in range(classes)], 16
    )
    generator = torch.Generator().manual_seed(0)
    images, teacher = torch.randn(8, 24, generator=generator), torch.randn(8, classes, generator=generator)
    labels = torch.randint(classes, (8,), generator=generator)
    criterion, optimizer = pf.DualLoss(), pf.ProGradSGD([net.prompt.ctx], lr=0.1, momentum=0.9)

    def step() -> None:
        optimizer.backward_and_update(*criterion(net.logits(images), teacher, labels))

    return step


def test_a_prompt_step() -> None:
    ten, hundred, thousand = (counted(prompt_step(classes)) for classes in (10, 100, 1000))
    assert ten.by_name == hundred.by_name == thousand.by_name
    # Each block: norm, product, attention, product, norm, product with GELU, product, and as many in the backward.
    # Beside them the last block has a product of its queries, and there are a final norm, the projection, the logits,
    # the loss and the update; the logits go back for each loss by itself.
    assert ten.products == 2 * (3 * LAYERS + 3) + 1
    assert ten.own == 2 * (4 * LAYERS + 1) + 3
    assert ten.total <= 200, ten.small


def test_the_tower_alone() -> None:
    """Features and the gradients of two cotangents: 14 launches a block, 6 at the ends, and what moves rows."""
    net = pf.clip.PromptedCLIP(tiny_clip(layers=LAYERS, dtype=torch.float32), TOKENIZER, ["cat", "dog"], 16)
    both = torch.ones(2, 2, 24)

    def step() -> None:
        features = net.class_features(unit=False)
        torch.func.vmap(lambda cotangent: torch.autograd.grad(features, net.prompt.ctx, cotangent))(both)

    launches = counted(step)
    assert launches.products + launches.own == 14 * LAYERS + 6
    # rows with the context; ends of text out of the last block and back; the prefix's rows of the residual stream
    assert launches.small == {"cat": 1, "index": 2, "new_zeros": 1, "index_add_": 1, "index_copy_": 1, "clone": 1}


@pytest.mark.parametrize("kind", [pf.ProGradAdamW, pf.ProGradSGD])
def test_an_update_is_one_operator(kind: Any) -> None:
    """Beside it a step has the kernels of the two backwards, and no others."""
    params = [Parameter(torch.randn(16, 8)), Parameter(torch.randn(3))]
    optimizer = kind(params, lr=0.1)
    backwards = counted(lambda: [torch.autograd.grad(loss, params) for loss in losses(params)])
    launches = counted(lambda: optimizer.backward_and_update(*losses(params)))
    assert launches.own == 1
    assert launches.small == backwards.small


def losses(params: list[Parameter]) -> tuple[Tensor, Tensor]:
    return sum(p.square().sum() for p in params), sum((-3 * p).sum() for p in params)  # type: ignore[return-value]


@pytest.mark.parametrize("steps", [1, 20])
def test_a_reading_of_the_conflicts(steps: int) -> None:
    """As many launches for any number of steps; the cosine alone takes half of them, as a loop may ask at each."""
    params = [Parameter(torch.randn(16, 8)), Parameter(torch.randn(3))]
    optimizer = pf.ProGradSGD(params, lr=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        optimizer.backward(*losses(params))
        optimizer.step()
    with Launches() as launches:
        alone = optimizer._projector._log.cosine(params)
    assert launches.total <= 13
    with Launches() as launches:
        conflict = optimizer.conflict
    assert launches.total <= 26
    assert torch.equal(alone, conflict.cosine)
    assert conflict.steps.tolist() == [steps] * 2
