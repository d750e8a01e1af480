"""Which way does it move? Affine-shift networks on clips, with and without the shift in time.

`python -m examples.neighbours.vast` takes about two minutes on two CPU cores and downloads nothing: emoji of the
package move to one of four sides (`moving_drawings.py`). Both networks have the same parameters and the same training;
one moves channels along frames, rows and columns, the other along rows and columns alone.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from examples.neighbours.counts import at_least
from examples.neighbours.moving_drawings import (
    CLASSES,
    accuracy,
    predictions,
    show_bars,
    show_clips,
    show_curves,
    trained,
)
from prograd_fast.neighbours.vast import AffineShiftNet

WITH, WITHOUT = "shift in time", "no shift in time"
COLOURS = {WITH: "#0072B2", WITHOUT: "#D55E00"}


class OnClips(nn.Module):
    """The network for clips (B, T, 3, H, W)."""

    def __init__(self, shifted_axes: tuple[int, ...], width: int, depth: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = AffineShiftNet(CLASSES, 3, width, depth, patch=4, shifted_axes=shifted_axes)

    def forward(self, clips: Tensor) -> Tensor:
        """Logits (B, CLASSES)."""
        logits: Tensor = self.network(clips.transpose(1, 2))
        return logits


def compare(steps: int, test_clips: int, out: Path, width: int = 32, depth: int = 2) -> list[str]:
    """Train both, draw the picture, and tell what came out in three sentences."""
    models, curves, right = {}, {}, {}
    for name, axes in ((WITH, (1, 2, 3)), (WITHOUT, (2, 3))):
        models[name], curves[name] = trained(OnClips(axes, width, depth), steps)
        right[name] = accuracy(*predictions(models[name], test_clips))
    backwards, labels = predictions(lambda x: models[WITH](x.flip(1)), test_clips)
    opposite = accuracy(backwards, labels ^ 1)  # right and left, down and up are neighbours in the list
    figure = Figure(figsize=(9, 5.2), dpi=150, layout="constrained")
    grid = figure.subplot_mosaic([["clips", "clips"], ["curves", "bars"]], height_ratios=[1.15, 1])
    show_clips(grid["clips"])
    show_curves(grid["curves"], curves, COLOURS)
    show_bars(grid["bars"], right, COLOURS)
    figure.savefig(out)
    parameters = sum(p.numel() for p in models[WITH].parameters())
    return [
        f"With the shift in time the network of {parameters:,} parameters names the direction of {right[WITH]:.1f} % "
        f"of {test_clips} clips of emoji that it was not trained on.",
        f"Without it, with as many parameters and the same {steps} steps, {right[WITHOUT]:.1f} % are right; "
        f"guessing gives {100 / CLASSES:.0f} %.",
        f"Played backwards, {opposite:.1f} % of the clips are given the direction opposite to theirs by the first one.",
    ]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="The direction of moving emoji, with and without a shift in time.")
    parser.add_argument("--steps", type=at_least(1), default=200, help="of training, 32 clips each (default: 200)")
    parser.add_argument("--clips", type=at_least(1), default=1000, help="to test on (default: 1000)")
    parser.add_argument("--out", type=Path, default=Path("vast.png"), help="the picture to write")
    options = parser.parse_args()
    print(*compare(options.steps, options.clips, options.out), sep="\n")


if __name__ == "__main__":
    main()
