"""Which way does it move? GSF in a small ResNet, XViT, and their ensemble, beside a ResNet on single frames.

`python -m examples.neighbours.gsf_xvit` takes about two minutes on two CPU cores and downloads nothing: emoji of the
package move to one of four sides (`moving_drawings.py`). `insert_gsf` puts its modules into a ResNet of one's own as it
does for torchvision's and timm's; the ensemble averages the probabilities, as the authors did for EPIC-Kitchens.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from examples.neighbours.counts import at_least
from examples.neighbours.moving_drawings import (
    CLASSES,
    FRAMES,
    SIDE,
    accuracy,
    predictions,
    show_bars,
    show_clips,
    show_curves,
    trained,
)
from prograd_fast.neighbours.gsf import Clips, insert_gsf
from prograd_fast.neighbours.xvit import TemporalHead, Trunk, XViT, ensemble

FRAMEWISE, GSF, XVIT, BOTH = "ResNet, frame by frame", "ResNet with GSF", "XViT", "GSF and XViT"
COLOURS = {FRAMEWISE: "#D55E00", GSF: "#0072B2", XVIT: "#009E73", BOTH: "#CC79A7"}


SLOWER = 8  # times the steps for the transformer, whose steps are short: it knows nothing of neighbourhoods


class ResidualBlock(nn.Module):
    """Two convolutions, the first of stride 2, and a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H/2, W/2)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def resnet() -> nn.Module:
    """For frames of 32 x 32 pixels."""
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
    blocks = nn.Sequential(ResidualBlock(12, 24), ResidualBlock(24, 48))
    return nn.Sequential(stem, blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, CLASSES))


def xvit() -> nn.Module:
    """For clips of such frames, in patches of 8 x 8 pixels."""
    torch.manual_seed(0)
    trunk = Trunk((SIDE // 8) ** 2, 48, 2, heads=4, frames=FRAMES, div=4, patch=8, mlp_ratio=2)
    return XViT(trunk, TemporalHead(48, CLASSES, heads=4, hidden=48, dropout=0.1))


def compare(steps: int, test_clips: int, out: Path) -> list[str]:
    """Train all, draw the picture, and tell what came out in three sentences."""
    models = {FRAMEWISE: Clips(resnet()), GSF: insert_gsf(resnet(), FRAMES), XVIT: xvit()}
    curves, logits, right = {}, {}, {}
    for name, model in models.items():
        length, rate = (steps, 4e-3) if name != XVIT else (SLOWER * steps, 1e-3)
        model, curves[name] = trained(model, length, rate)
        logits[name], labels = predictions(model, test_clips)
        right[name] = accuracy(logits[name], labels)
    right[BOTH] = accuracy(ensemble([logits[GSF], logits[XVIT]]), labels)
    figure = Figure(figsize=(9, 5.2), dpi=150, layout="constrained")
    grid = figure.subplot_mosaic([["clips", "clips"], ["curves", "bars"]], height_ratios=[1.15, 1])
    show_clips(grid["clips"])
    show_curves(grid["curves"], curves, COLOURS)
    show_bars(grid["bars"], right, COLOURS)
    figure.savefig(out)
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    better = max(right[GSF], right[XVIT])
    return [
        f"Frame by frame the ResNet of {sizes[FRAMEWISE]:,} parameters names the direction of {right[FRAMEWISE]:.1f} % "
        f"of {test_clips} clips of emoji that it was not trained on; guessing gives {100 / CLASSES:.0f} %.",
        f"{sizes[GSF] - sizes[FRAMEWISE]:,} more parameters of GSF give {right[GSF]:.1f} %, and an XViT of "
        f"{sizes[XVIT]:,} parameters {right[XVIT]:.1f} %, after {steps} steps and {SLOWER * steps}.",
        f"The mean of the probabilities of both is right for {right[BOTH]:.1f} %, "
        f"{abs(right[BOTH] - better):.1f} points {'above' if right[BOTH] >= better else 'below'} the better one.",
    ]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="The direction of moving emoji with GSF, XViT and both.")
    parser.add_argument("--steps", type=at_least(1), default=150, help="of the ResNets, 32 clips each (default: 150)")
    parser.add_argument("--clips", type=at_least(1), default=1000, help="to test on (default: 1000)")
    parser.add_argument("--out", type=Path, default=Path("gsf_xvit.png"), help="the picture to write")
    options = parser.parse_args()
    print(*compare(options.steps, options.clips, options.out), sep="\n")


if __name__ == "__main__":
    main()
