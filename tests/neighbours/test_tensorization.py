"""Guards defensive tensorization: tensorly's own dropout in float64, every mask of a small rank, a prompt's context."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import prograd_fast as pf
from examples.neighbours import tensorization as example
from prograd_fast.neighbours.tensorization import (
    CP,
    TT,
    FactorizedConv2d,
    FactorizedLinear,
    LowRankContext,
    TensorDropout,
    Tucker,
)
from tests.neighbours.by_name import DTYPES, Golden
from tests.ops.support import normal
from tests.tiny_clip import TOKENIZER, tiny_clip
from tests.tolerances import assert_close

KINDS = {
    "Tucker": lambda: Tucker((3, 4, 2), (4, 4, 2)),
    "CP": lambda: CP((3, 4, 2), 5),
    "TT": lambda: TT((3, 4, 2), (3, 4)),
}


def of_case(case):
    if case["kind"] == "CP":
        return CP(case["shape"], case["rank"])
    return {"Tucker": Tucker, "TT": TT}[case["kind"]](
        case["shape"], case["rank"][1:-1] if case["kind"] == "TT" else case["rank"]
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_authors_dropout(dtype: torch.dtype) -> None:
    golden = Golden("tensor_dropout", dtype)
    for case in golden.recipe["cases"]:
        prefix = case["prefix"]
        tensor = golden.load(of_case(case), f"{prefix}w_")
        kept = [f"{prefix}keep_{j}" for j in range(len(tensor.ranks))]
        masks = [golden[name] if name in golden.arrays else None for name in kept]
        golden.close(tensor.full(), f"{prefix}full_without_dropout")
        dropout = TensorDropout(case["p"], case["min_dim"], "authors", case.get("drop_test", False))
        w = dropout.train(case["train"])(tensor, masks)
        golden.close(w, f"{prefix}reconstruction")
        (w * golden[f"{prefix}cotangent"]).sum().backward()
        golden.gradients(tensor, f"{prefix}grad_")
        if case["active"]:  # the ranks that the authors drop are those that we would
            assert [mask is None for mask in masks] == [mask is None for mask in dropout.masks(tensor)]
    golden.all_compared()


@pytest.mark.parametrize("kind", KINDS)
def test_unbiased_scale_keeps_the_mean(kind: str) -> None:
    """Over every mask with its probability; all dropped counts as it comes, since the rule above changes it."""
    torch.manual_seed(0)
    tensor, p = KINDS[kind]().double(), 0.3
    for scale in ("unbiased", "authors"):
        dropout = TensorDropout(p, min_dim=2, scale=scale)
        sizes = [rank for rank in tensor.ranks if rank > 2]
        mean = torch.zeros(tensor.shape, dtype=torch.float64)
        for bits in itertools.product([0, 1], repeat=sum(sizes)):
            masks = iter(torch.tensor(bits).split(sizes))
            probability = math.prod(1 - p if bit else p for bit in bits)
            mean += probability * dropout(tensor, [next(masks) if rank > 2 else None for rank in tensor.ranks]).detach()
        whole = len(tensor.ranks) - len(sizes) if scale == "authors" else 0
        assert_close(mean, tensor.full() / (1 - p) ** whole, "formula", torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_start_has_the_standard_deviation(kind: str) -> None:
    torch.manual_seed(0)
    shape = (12, 10, 8)
    tensors = {"Tucker": lambda: Tucker(shape, (8, 8, 8), 0.5), "CP": lambda: CP(shape, 16, 0.5)}
    tensors["TT"] = lambda: TT(shape, (8, 8), 0.5)
    squares = torch.stack([tensors[kind]().full().square().mean() for _ in range(200)])
    assert squares.mean().sqrt().item() == pytest.approx(0.5, rel=0.1)


def test_masks_are_random_and_never_empty() -> None:
    torch.manual_seed(0)
    tensor = Tucker((3, 4, 2), (5, 4, 2))
    masks = [TensorDropout(0.5).masks(tensor) for _ in range(400)]
    assert all(third is None and first.any() and second.any() for first, second, third in masks)
    kept = torch.stack([first for first, _, _ in masks]).double().mean(0)
    assert ((kept - 0.5).abs() < 0.1).all()
    almost = torch.stack([TensorDropout(1 - 1e-9).masks(tensor)[0] for _ in range(400)])
    assert (almost.sum(1) == 1).all()
    assert almost.any(0).all()  # which one stays is random


@pytest.mark.parametrize("scale", ["unbiased", "authors"])
def test_evaluation(scale: str) -> None:
    torch.manual_seed(0)
    tensor, keep = CP((3, 4), 6), [torch.tensor([1, 0, 1, 1, 0, 1])]
    assert torch.equal(TensorDropout(0.5, scale=scale).eval()(tensor, keep), tensor.full())
    dropped = TensorDropout(0.5, scale=scale, drop_test=True).eval()(tensor, keep)
    torch.testing.assert_close(dropped, tensor.contract(keep) * (2 if scale == "unbiased" else 1))


def test_layers_are_those_of_the_full_weight() -> None:
    torch.manual_seed(0)
    linear = FactorizedLinear(TT((2, 3, 5), (2, 3)), 6, TensorDropout(0.5, min_dim=1)).eval()
    x = normal(4, 5).float()
    torch.testing.assert_close(linear(x), x @ linear.weight.full().reshape(6, 5).T)
    conv = FactorizedConv2d(Tucker((6, 3, 3, 3), (4, 3, 2, 2)), 2, 1, TensorDropout(0.5)).eval()
    x = normal(2, 3, 8, 8).float()
    torch.testing.assert_close(conv(x), nn.functional.conv2d(x, conv.weight.full(), stride=2, padding=1))
    assert not torch.equal(conv.train()(x), conv(x))


def test_low_rank_context() -> None:
    torch.manual_seed(0)
    prompt, rank = nn.Module(), 3
    context = normal(5, rank) @ normal(rank, 16)
    prompt.ctx = nn.Parameter(context.clone())
    parametrize.register_parametrization(prompt, "ctx", LowRankContext(rank, 0.5))
    assert sum(p.numel() for p in prompt.parameters()) == rank * (5 + 16)
    assert_close(prompt.eval().ctx, context, "formula", torch.float64)
    mean = torch.stack([prompt.train().ctx.detach() for _ in range(4000)]).mean(0)
    expected = context * (0.5 + 0.125 / 3) / 0.5  # 1 - p of a component and p³/3 of the one that stays, over 1 - p
    assert ((mean - expected).abs().max() / expected.abs().max()).item() < 0.1  # of 4000 draws
    assert torch.linalg.matrix_rank(prompt.ctx.detach()) < 4


def test_low_rank_context_of_a_prompt() -> None:
    torch.manual_seed(0)
    net = pf.clip.PromptedCLIP(tiny_clip(), TOKENIZER, ["cat", "dog"], n_ctx=4).eval()
    pictures = normal(2, 3, 16, 16)
    before = net(pictures)
    parametrize.register_parametrization(net.prompt, "ctx", LowRankContext(4, 0.5))
    assert_close(net(pictures), before, "formula", torch.float64)
    net.train()(pictures)[:, 0].sum().backward()
    trained = [p for p in net.parameters() if p.requires_grad]
    assert [tuple(p.shape) for p in trained] == [(4, 4), (4, 32)]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained)


def test_wrong_values_are_refused() -> None:
    with pytest.raises(ValueError, match="p: expected 0 <= p < 1, got 1"):
        TensorDropout(1.0)
    with pytest.raises(ValueError, match="'unbiased' or 'authors', got 'none'"):
        TensorDropout(0.5, scale="none")
    with pytest.raises(ValueError, match="more than min_dim 3, got a CP rank of 3"):
        TensorDropout(0.5)(CP((2, 2), 3))
    with pytest.raises(ValueError, match=r"masks: expected one for each of the ranks \(4, 3\), got 2 of \[4, 2\]"):
        TensorDropout(0.5)(Tucker((2, 2), (4, 3)), [torch.ones(4), torch.ones(2)])
    with pytest.raises(ValueError, match=r"got 0 of \[\]"):
        TensorDropout(0.5)(TT((2, 2), (4,)), [])
    with pytest.raises(ValueError, match="ranks: expected 2 of 1 or more"):
        TT((2, 3, 4), (2,))
    with pytest.raises(ValueError, match="out_features: expected a divisor of 12, got 5"):
        FactorizedLinear(CP((3, 4), 2), 5)
    with pytest.raises(ValueError, match=r"\(out, in, height, width\), got \(3, 4\)"):
        FactorizedConv2d(CP((3, 4), 2))
    with pytest.raises(ValueError, match=r"both at least the rank 3, got \(2, 8\)"):
        LowRankContext(3).right_inverse(normal(2, 8))


def test_attack_stays_near_the_pictures_and_raises_the_loss() -> None:
    net = example.network(None).eval()
    pictures, labels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])
    worst = example.attacked(net, pictures, labels, 4 / 255, draws=1, steps=3)
    assert (worst - pictures).abs().max() <= 4 / 255 + 1e-6
    assert 0 <= worst.min() <= worst.max() <= 1
    losses = [nn.functional.cross_entropy(net(x * 4 - 2), labels).item() for x in (pictures, worst)]
    assert losses[1] > losses[0] + 0.01


def test_example(tmp_path: Path) -> None:
    sentences = example.compare(1, 1, [8], 0.2, tmp_path / "pgd.png", stride=20)
    assert len(sentences) == 3
    assert "±8/255" in sentences[1]
    assert (tmp_path / "pgd.png").stat().st_size > 10_000
