"""Guards GSF: the authors' module in float64, and the plug-in for ResNets of torchvision and timm."""

import pytest
import timm
import torch
import torchvision

from prograd_fast.neighbours.gsf import GSF, Clips, insert_gsf
from tests.neighbours.by_name import DTYPES, Golden
from tests.neighbours.golden_gsf import compare_with_the_authors
from tests.ops.support import BACKENDS, normal, running_on


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_authors_module(backend: str, dtype: torch.dtype) -> None:
    with running_on(backend):
        compare_with_the_authors(Golden("gsf", dtype))


def test_size_of_the_authors_module() -> None:
    assert sum(p.numel() for p in GSF(256, 8).parameters()) == 7464


@pytest.mark.parametrize(
    "resnet",
    [
        lambda: torchvision.models.resnet50(num_classes=5, width_per_group=8),
        lambda: torchvision.models.resnet18(num_classes=5),
        lambda: timm.create_model("resnet26", num_classes=5, zero_init_last=False),
    ],
    ids=["torchvision, three convolutions", "torchvision, two", "timm"],
)
def test_frames_of_a_resnet_see_each_other_and_no_other_clip(resnet) -> None:
    torch.manual_seed(0)
    network = insert_gsf(resnet(), frames=3).eval()
    clips = normal(2, 3, 3, 32, 32).float()
    with torch.no_grad():
        before = network(clips)
        assert before.shape == (2, 5)
        assert not torch.allclose(before, network(clips.flip(1)), atol=1e-5)  # the order of the frames counts
        clips[1] = 0
        torch.testing.assert_close(network(clips)[0], before[0])


def test_every_residual_block_has_one() -> None:
    network = insert_gsf(timm.create_model("resnet26", num_classes=2), frames=2)
    assert sum(isinstance(module, GSF) for module in network.modules()) == 8
    blocks = [module for module in network.modules() if hasattr(module, "conv3")]
    assert all(isinstance(block.conv3[1], GSF) and isinstance(block.conv1, torch.nn.Conv2d) for block in blocks)


def test_used_channels_are_rounded_down_then_up_to_even() -> None:
    assert GSF(21, 2, 37).used == 8  # of 7.77


def test_clips_average_the_frames() -> None:
    logits = normal(6, 4)
    clips = logits.view(2, 3, 1, 2, 2)
    assert torch.equal(Clips(torch.nn.Flatten())(clips), logits.unflatten(0, (2, 3)).mean(1))


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="that 4 divides, got 6 of 12 at 50"):
        GSF(12, 4, 50)
    with pytest.raises(ValueError, match=r"ratio of 1 \.\.\. 100, got 4, 0"):
        GSF(12, 4, 0)
    with pytest.raises(ValueError, match=r"clips·4 frames, 8 channels, H, W\), got \(6, 8, 2, 2\)"):
        GSF(8, 4)(normal(6, 8, 2, 2))
    with pytest.raises(ValueError, match=r"H, W\), got \(4, 8, 2\)"):
        GSF(8, 4)(normal(4, 8, 2))
    with pytest.raises(ValueError, match=r"clips: expected \(B, T, C, H, W\), got \(4, 3, 2, 2\)"):
        Clips(torch.nn.Flatten())(normal(4, 3, 2, 2))
    with pytest.raises(ValueError, match="expected blocks with conv2"):
        insert_gsf(torch.nn.Linear(2, 2), 4)
