"""Guards the video models taught by a frozen image model: loss, targets and views against formulas; the recipe."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from examples.neighbours import iboot as example
from prograd_fast.neighbours.iboot import MappingHead, augmented, frame_targets, subsume_loss
from tests.ops.support import normal
from tests.tolerances import assert_close


@pytest.mark.parametrize("predictions", [1, 4])
def test_loss_is_the_distance_of_unit_vectors(predictions: int) -> None:
    p, targets = normal(3, predictions, 5).double().requires_grad_(), normal(3, 4, 5, seed=1).double()
    targets.requires_grad_()
    loss = subsume_loss(p, targets)
    unit_p, unit_t = (x.detach() / x.detach().square().sum(-1, keepdim=True).sqrt() for x in (p, targets))
    expected = sum((unit_p[b, t % predictions] - unit_t[b, t]).square().sum() for b in range(3) for t in range(4)) / 12
    assert_close(loss.detach(), expected, "formula", torch.float64)
    loss.backward()
    assert targets.grad is None
    along = (p.grad * p.detach()).sum(-1).abs().max()  # the length of a prediction does not count
    assert along < 1e-12 * p.grad.abs().max() * p.detach().abs().max() * 10
    assert subsume_loss(targets, 3 * targets).item() == pytest.approx(0, abs=1e-12)
    assert subsume_loss(targets, -targets).item() == pytest.approx(4)


def test_shapes_that_do_not_fit_are_refused() -> None:
    for shape in ((3, 2, 5), (2, 1, 5), (3, 4, 6), (3, 5)):
        with pytest.raises(ValueError, match=r"expected \(3, 4, 5\), as the targets, or \(3, 1, 5\).*frames=4 or 1"):
            subsume_loss(torch.ones(shape), torch.ones(3, 4, 5))


def test_head_has_a_prediction_for_each_frame() -> None:
    torch.manual_seed(0)
    head = MappingHead(6, 5, frames=4).double().eval()
    x = normal(3, 6).double()
    hidden = F.linear(x, head[0].weight, head[0].bias) / (1 + 1e-5) ** 0.5
    expected = F.linear(hidden.relu(), head[3].weight, head[3].bias).reshape(3, 4, 5)
    assert head[0].out_features == 24
    assert_close(head(x).detach(), expected.detach(), "formula", torch.float64)


def test_targets_are_those_of_each_frame_alone() -> None:
    tower = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4, 5)).double()
    clips = normal(3, 4, 3, 2, 2).double()
    targets = frame_targets(tower, clips, batch=5)
    assert not targets.requires_grad
    for b, t in ((0, 0), (1, 3), (2, 1)):
        assert_close(targets[b, t], F.normalize(tower(clips[b, t][None]), dim=-1)[0].detach(), "formula", torch.float64)


def test_views_are_the_same_for_all_frames_of_a_clip() -> None:
    """A ramp stays a ramp: window, place, mirror and contrast of each clip are read off it, the same in each frame."""
    side = 16
    columns = (torch.arange(side).double() + 0.5) / side * 2 - 1
    ramp = columns.expand(8, 3, 1, side, side).clone()
    ramp[:, 1:] += 0.1 * torch.arange(1, 3).double()[:, None, None, None]  # frames differ by a constant
    views = augmented(ramp, torch.Generator().manual_seed(0), scale=0.5, contrast=0.0, mirror=True)
    inner = views[..., 2:-2]  # interpolation is exact there
    slopes = (inner[..., 1:] - inner[..., :-1]) * side / 2
    assert_close(slopes, slopes[:, :1, :1, :1, :1].expand_as(slopes), "formula", torch.float32)
    each = slopes[:, 0, 0, 0, 0]
    assert (each.abs() >= 0.5).all()
    assert (each.abs() <= 1).all()
    assert 0 < (each < 0).sum() < 8
    assert_close(views[:, 1] - views[:, 0], torch.full((8, 1, side, side), 0.1).double(), "formula", torch.float32)
    same = augmented(ramp, torch.Generator().manual_seed(0), scale=1.0, contrast=0.0)
    assert_close(same, ramp, "formula", torch.float32)
    factors = augmented(ramp, torch.Generator().manual_seed(1), scale=1.0, contrast=0.4).std((1, 2, 3, 4))
    factors = factors / ramp.std((1, 2, 3, 4))
    assert (factors - 1).abs().max() <= 0.4
    assert factors.std() > 0.05
    two = [augmented(ramp, torch.Generator().manual_seed(seed)) for seed in (0, 0)]
    assert torch.equal(*two)
    for options in ({"scale": 0.0}, {"scale": 1.1}, {"contrast": 1.0}):
        with pytest.raises(ValueError, match="expected a scale above 0"):
            augmented(ramp, torch.Generator(), **options)


def test_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "targets_of", lambda x: F.normalize(x.mean((3, 4)), dim=-1))  # without the tower
    sentences = example.compare(8, 2, 2, 2, 8, tmp_path / "iboot.png", width=4)
    assert len(sentences) == 3
    assert (tmp_path / "iboot.png").stat().st_size > 10_000
