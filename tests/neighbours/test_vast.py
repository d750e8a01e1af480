"""Guards the affine-shift networks: the block against its formula, what frames and pixels reach, and refusals."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from examples.neighbours import moving_drawings, vast
from prograd_fast.neighbours.vast import AffineShift, AffineShiftBlock, AffineShiftNet, ChannelNorm
from tests.ops.support import normal
from tests.tolerances import assert_close


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """In float64, with no parameter at zero or one."""
    for i, parameter in enumerate(module.double().parameters()):
        parameter.data = 0.5 * normal(*parameter.shape, seed=i)
    return module


def shifted_by_roll(v: Tensor, div: int) -> Tensor:
    """Channel group by channel group; what torch.roll brings from the other side is set to zero."""
    out, part = v.clone(), v.shape[1] // div
    for g, (axis, sign) in enumerate((axis, sign) for axis in range(2, v.dim()) for sign in (1, -1)):
        rolled = v[:, g * part : (g + 1) * part].roll(sign, axis)
        rolled.select(axis, 0 if sign == 1 else -1).zero_()
        out[:, g * part : (g + 1) * part] = rolled
    return out


@pytest.mark.parametrize("positions", [(4, 5), (3, 4, 5)], ids=["pictures", "clips"])
def test_mixing_is_the_formula(positions: tuple[int, ...]) -> None:
    mixing = randomised(AffineShift(17, len(positions)))
    x = normal(2, 17, *positions)
    tokens = x.movedim(1, -1)
    v = F.linear(tokens, mixing.value.weight, mixing.value.bias).movedim(-1, 1)
    scale = 2 * torch.sigmoid(mixing.scale(v.flatten(2).mean(2))).reshape(2, 17, *[1] * len(positions))
    frames = v if len(positions) == 2 else v.transpose(1, 2).flatten(0, 1)
    kernel = mixing.bias.weight.reshape(17, 1, 3, 3)
    bias = F.conv2d(frames, kernel, mixing.bias.bias, padding=1, groups=17)
    bias = bias if len(positions) == 2 else bias.unflatten(0, (2, 3)).transpose(1, 2)
    mixed = scale * shifted_by_roll(v, 8) + bias
    expected = F.linear(mixed.movedim(1, -1), mixing.output.weight, mixing.output.bias).movedim(-1, 1)
    assert_close(mixing(x), expected, "formula", torch.float64)


def test_block_is_the_formula() -> None:
    block = randomised(AffineShiftBlock(8, 2))
    x = normal(2, 8, 4, 4)
    half = x + block.shift(block.norm1(x))
    hidden = F.gelu(F.linear(block.norm2(half).movedim(1, -1), block.fc1.weight, block.fc1.bias))
    expected = half + F.linear(hidden, block.fc2.weight, block.fc2.bias).movedim(-1, 1)
    assert_close(block(x), expected, "formula", torch.float64)


def test_channel_norm_is_layer_norm_of_the_channels() -> None:
    x = 3 + normal(2, 6, 4)
    norm = randomised(ChannelNorm(6))
    centred = x - x.mean(1, keepdim=True)
    expected = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    assert_close(norm(x), expected * norm.weight[:, None] + norm.bias[:, None], "formula", torch.float64)


def test_patches_keep_their_pixels_together() -> None:
    net = AffineShiftNet(2, 3, width=8, depth=1, patch=2)
    x = normal(1, 3, 2, 4, 6)
    patches = net._patches(x)
    assert patches.shape == (1, 12, 2, 2, 3)
    assert torch.equal(patches[0, :, 1, 1, 2].reshape(3, 2, 2), x[0, :, 1, 2:4, 4:6])


def test_frames_are_mixed_unless_they_are_left_out() -> None:
    x = normal(1, 3, 4, 8, 8)
    for shifted_axes, mixed in ((None, True), ((2, 3), False)):
        net = randomised(AffineShiftNet(3, 3, width=16, depth=2, patch=4, shifted_axes=shifted_axes))
        for block in net.blocks:  # its mean over all positions would tell the frames of each other
            torch.nn.init.zeros_(block.shift.scale[2].weight)
        backwards = torch.allclose(net(x), net(x.flip(2)), rtol=1e-9)
        assert backwards != mixed


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="div: expected 1 or more, got 0"):
        AffineShift(8, 2, div=0)
    with pytest.raises(ValueError, match="axes: expected 2 or 3"):
        AffineShift(8, 1)
    with pytest.raises(ValueError, match=r"among 1 ... axes, got 2 and \(3,\)"):
        AffineShift(8, 2, shifted_axes=(3,))
    with pytest.raises(ValueError, match=r"expected 6 or more for shifts along \(1, 2, 3\), got 4"):
        AffineShift(8, 3, div=4)
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), H and W multiples of 16, got \(1, 3, 20, 16\)"):
        AffineShiftNet(2, width=8, depth=1)(normal(1, 3, 20, 16).float())


def test_frames_of_a_clip_are_moved_by_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving_drawings, "NOISE", 0.0)
    clips, labels = moving_drawings.clips(moving_drawings.drawings("test"), 16, torch.Generator().manual_seed(0))
    assert set(labels.tolist()) == {0, 1, 2, 3}
    for clip, step in zip(clips, moving_drawings.STEPS[labels].tolist(), strict=True):
        fast = [[clip[0].roll([pixels * side for side in step], (1, 2)), clip[1]] for pixels in (2, 3)]
        assert any(torch.equal(*pair) for pair in fast)


def test_example(tmp_path: Path) -> None:
    sentences = vast.compare(2, 8, tmp_path / "vast.png", width=8, depth=1)
    assert len(sentences) == 3
    assert "of 8 clips" in sentences[0]
    assert (tmp_path / "vast.png").stat().st_size > 10_000
