"""Guards EdgeViT: the authors' block and a whole small net in float64, and the published sizes."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from examples.neighbours import edgevit as example
from prograd_fast.neighbours.edgevit import EdgeViT, LGLBlock, edgevit
from tests.neighbours.by_name import DTYPES, Golden
from tests.ops.support import normal


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_authors_modules(dtype: torch.dtype) -> None:
    golden = Golden("edgevit_lgl", dtype)
    r = golden.recipe["block"]
    for mode in ("eval", "train"):
        block = golden.load(LGLBlock(r["dim"], r["num_heads"], r["mlp_ratio"], r["sr_ratio"]), "block_")
        block.train(mode == "train")
        x = golden.leaf("block_input")
        out = block(x)
        golden.close(out, f"{mode}_output")
        (out * golden["block_cotangent"]).sum().backward()
        golden.close(x.grad, f"{mode}_grad_input")
        golden.gradients(block, f"{mode}_grad_")
    for norm in ("norm1", "norm2"):
        for name in ("running_mean", "running_var"):
            golden.close(getattr(getattr(block.LocalAgg, norm), name), f"after_LocalAgg.{norm}.{name}")

    last = golden.load(LGLBlock(r["dim"], r["num_heads"], r["mlp_ratio"]), "last_").eval()
    x = golden.leaf("block_input")
    out = last(x)
    golden.close(out, "last_output")
    (out * golden["block_cotangent"]).sum().backward()
    golden.close(x.grad, "last_grad_input")

    r = golden.recipe["net"]
    net = EdgeViT(r["depth"], r["embed_dim"], r["head_dim"], r["classes"], r["mlp_ratio"])
    logits = golden.load(net, "net_").eval()(golden["net_input"])
    golden.close(logits, "net_logits")
    loss = F.cross_entropy(logits, golden["net_labels"])
    golden.close(loss, "net_loss")
    loss.backward()
    golden.gradients(net, "net_grad_")
    golden.all_compared()


@pytest.mark.parametrize(("name", "millions"), [("XXS", 4.07), ("XS", 6.77), ("S", 13.11)])
def test_published_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in edgevit(name).parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_other_sizes_than_the_authors() -> None:
    net = edgevit("XXS", classes=3).eval()
    with torch.no_grad():
        assert net(normal(1, 3, 64, 32).float()).shape == (1, 3)


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="head_width: expected a divisor of the widths"):
        EdgeViT((1, 1, 3, 2), (36, 72, 144, 288), 64)
    with pytest.raises(ValueError, match="four stages, got 1 and 4"):
        EdgeViT((1,), (36, 72, 144, 288), 36)
    with pytest.raises(ValueError, match="heads: expected a divisor of the width 8, got 3"):
        LGLBlock(8, 3)
    with pytest.raises(ValueError, match="rate: expected 1 or more, got 0"):
        LGLBlock(8, 2, rate=0)
    with pytest.raises(ValueError, match=r"divisor of the widths .*, got 0"):
        EdgeViT((1, 1, 3, 2), (36, 72, 144, 288), 0)
    with pytest.raises(ValueError, match=r"got \(1, 1, 32, 32\)"):
        edgevit("XXS")(normal(1, 1, 32, 32).float())
    with pytest.raises(ValueError, match="divisible by 2, got 5 and 4"):
        LGLBlock(8, 2, rate=2)(normal(1, 8, 5, 4).float())
    with pytest.raises(ValueError, match="divisible by 32"):
        edgevit("XXS")(normal(1, 3, 30, 32).float())
    with pytest.raises(ValueError, match="XXS, XS, S, got 'M'"):
        edgevit("M")


@pytest.mark.slow
def test_example(tmp_path: Path) -> None:
    sentences = example.compare(1, [1.0], tmp_path / "edgevit.png", stride=20)
    assert len(sentences) == 3
    assert "with ρ = 1" in sentences[1]
    assert (tmp_path / "edgevit.png").stat().st_size > 10_000
