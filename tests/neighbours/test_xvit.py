"""Guards XViT: the authors' shift, block, head and trunk in float64; the defect of their factory, on request."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from examples.neighbours import gsf_xvit
from prograd_fast.neighbours.xvit import Attention, Block, TemporalHead, Trunk, XViT, ensemble, shift_heads
from tests.neighbours.by_name import DTYPES, Golden
from tests.ops.support import normal


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_authors_modules(dtype: torch.dtype) -> None:
    golden = Golden("xvit_shift_attention", dtype)
    r = golden.recipe

    x = golden.leaf("shift_input")
    out = shift_heads(x, r["frames"], r["shift_div"])
    golden.close(out, "shift_output")
    (out * golden["shift_cotangent"]).sum().backward()
    golden.close(x.grad, "shift_grad_input")

    block = Block(r["dim"], r["num_heads"], r["mlp_ratio"], r["norm_eps_block"], r["frames"], r["shift_div"])
    golden.load(block, "block_")
    x = golden.leaf("block_input")
    out = block(x)
    golden.close(out, "block_output")
    (out * golden["block_cotangent"]).sum().backward()
    golden.close(x.grad, "block_grad_input")
    golden.gradients(block, "block_grad_")

    head = golden.load(TemporalHead(r["dim"], r["head"]["classes"], r["num_heads"], r["head"]["mlp_dim"]), "head_")
    x = golden.leaf("head_input")
    logits = head.eval()(x)
    golden.close(logits, "head_logits")
    loss = F.cross_entropy(logits, golden["head_labels"])
    golden.close(loss, "head_loss")
    loss.backward()
    golden.close(x.grad, "head_grad_input")
    golden.gradients(head, "head_grad_")

    sizes = {"frames": r["frames"], "div": r["shift_div"], "mlp_ratio": r["mlp_ratio"], "patch": 2}
    trunk = Trunk(r["trunk"]["tokens"], r["dim"], r["trunk"]["depth"], r["num_heads"], **sizes)
    golden.load(trunk, "trunk_", ignore=("patch_embed",))
    x = golden.leaf("trunk_tokens")
    out = trunk(x)
    golden.close(out, "trunk_output")
    (out * golden["trunk_cotangent"]).sum().backward()
    golden.close(x.grad, "trunk_grad_input")
    golden.gradients(trunk, "trunk_grad_")
    golden.all_compared()


def small_trunk(frames: int, segment: int | None = None, depth: int = 2) -> Trunk:
    torch.manual_seed(0)
    return Trunk(4, 16, depth, 2, frames=frames, div=4, segment=segment, patch=4).double().eval()


def reached_frames(trunk: Trunk, changed: int) -> list[int]:
    """Frames whose class features a change of one frame changes."""
    clips = normal(1, trunk.frames, 3, 8, 8)
    other = clips.clone()
    other[0, changed] += 1
    with torch.no_grad():
        difference = trunk(trunk.embed(clips)) - trunk(trunk.embed(other))
    return difference.abs().amax(1).gt(1e-12).nonzero().flatten().tolist()


def test_each_block_reaches_one_frame_further() -> None:
    assert reached_frames(small_trunk(8, depth=1), 4) == [3, 4, 5]
    assert reached_frames(small_trunk(8), 4) == [2, 3, 4, 5, 6]


def test_authors_segments_do_not_see_each_other() -> None:
    trunk = small_trunk(8, segment=4)
    assert reached_frames(trunk, 4) == [4, 5, 6]
    assert trunk.temp_embed.shape == (1, 4, 1, 16)


def test_model_takes_clips() -> None:
    torch.manual_seed(0)
    model = XViT(small_trunk(4), TemporalHead(16, 3, 2, 8).double().eval())
    logits = model(normal(2, 4, 3, 8, 8))
    assert logits.shape == (2, 3)


def test_ensemble_averages_probabilities() -> None:
    a, b = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.25, 0.75]]).log()
    torch.testing.assert_close(ensemble([a, b]), torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close(ensemble([a, b], [3, 1]), torch.tensor([[0.625, 0.375]]))


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="segment: expected a divisor of the 6 frames, got 4"):
        small_trunk(6, segment=4)
    with pytest.raises(ValueError, match="clips: expected 4 frames of 4 patches, got 5 of 4"):
        small_trunk(4).embed(normal(1, 5, 3, 8, 8))
    with pytest.raises(ValueError, match=r"tokens: expected \(clips·4, 4, 16\), got \(6, 4, 16\)"):
        small_trunk(4)(normal(6, 4, 16))
    with pytest.raises(ValueError, match=r"clips·frames, .* got \(5, 2, 3, 4\), frames 2 and div 8"):
        shift_heads(normal(5, 2, 3, 4), 2, 8)
    with pytest.raises(ValueError, match=r"logits: expected one shape, got \(2, 3\), \(2, 4\)"):
        ensemble([normal(2, 3), normal(2, 4)])
    with pytest.raises(ValueError, match="heads: expected a divisor of the width 6, got 4"):
        Attention(6, 4)
    with pytest.raises(ValueError, match="div: expected 2 or more"):
        Attention(8, 4, 2, div=1)
    with pytest.raises(ValueError, match="weights: expected 1 that are not negative"):
        ensemble([normal(1, 2)], [-1.0])


def test_example_with_gsf(tmp_path: Path) -> None:
    sentences = gsf_xvit.compare(1, 4, tmp_path / "clips.png")
    assert len(sentences) == 3
    assert "of 4 clips" in sentences[0]
    assert (tmp_path / "clips.png").stat().st_size > 10_000
