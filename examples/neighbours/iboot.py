"""Which way does it move, from few labels? A video network that first learns what a frozen image model says of frames.

`python -m examples.neighbours.iboot` takes about a minute on a CPU core and downloads nothing: emoji of the package
move to one of four sides (`moving_drawings.py`), and emoji-lite's image tower gives the targets. A small 3D network
learns the direction from few labelled clips: from a random start; after it has learned to predict the frames' features
of unlabelled clips; and the latter with every step projected so that it does not go against that prediction.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

import prograd_fast as pf
from examples.neighbours.counts import at_least
from examples.neighbours.moving_drawings import (
    CLASSES,
    FRAMES,
    accuracy,
    clips,
    drawings,
    predictions,
    show_bars,
    show_clips,
    smoothed,
)
from prograd_fast.neighbours.iboot import MappingHead, augmented, frame_targets, subsume_loss

SCRATCH, FIRST, PROJECTED = "random start", "predicted frames first", "the same, projected"
COLOURS = {SCRATCH: "#D55E00", FIRST: "#0072B2", PROJECTED: "#009E73"}
SIZE = 128  # pixels that emoji-lite looks at


class Network(nn.Module):
    """Three 3D convolutions that halve the sides, the mean of all positions, and two heads."""

    def __init__(self, width: int, image_width: int) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        layers = []
        for before, after in pairwise(widths):
            conv = nn.Conv3d(before, after, 3, (1, 2, 2), 1, bias=False)
            layers += [conv, nn.BatchNorm3d(after), nn.ReLU(inplace=True)]
        self.trunk = nn.Sequential(*layers)
        self.directions = nn.Linear(4 * width, CLASSES)
        self.frames = MappingHead(4 * width, image_width, FRAMES)

    def features(self, x: Tensor) -> Tensor:
        """(B, T, 3, H, W) to (B, 4·width)."""
        return torch.as_tensor(self.trunk(x.transpose(1, 2)).mean((2, 3, 4)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the directions."""
        return torch.as_tensor(self.directions(self.features(x)))


def targets_of(x: Tensor) -> Tensor:
    """What emoji-lite's image tower says of every frame."""
    clip = pf.clip.load_model("emoji-lite", device="cpu")
    whole = F.interpolate((1 - x).flatten(0, 1), size=SIZE, mode="bilinear").unflatten(0, x.shape[:2])
    return frame_targets(clip.model.encode_image, whole)  # white is 1 and black is -1


def first(network: Network, x: Tensor, targets: Tensor, steps: int, batch: int = 32) -> list[float]:
    """Learn to predict the frames' features from augmented views; the loss of each step."""
    g, losses = torch.Generator().manual_seed(0), []
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01)
    for _ in range(steps):
        rows = torch.randint(len(x), (batch,), generator=g)
        loss = subsume_loss(network.frames(network.train().features(augmented(x[rows], g))), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def labelled(network: Network, x: Tensor, labels: Tensor, targets: Tensor | None, steps: int) -> Network:
    """Learn the directions; with targets each step is projected on the prediction of frames."""
    g = torch.Generator().manual_seed(1)
    optimizer = pf.ProGradAdamW([*network.trunk.parameters(), *network.directions.parameters()], lr=2e-3)
    network.frames.requires_grad_(False)
    for _ in range(steps):
        rows = torch.randperm(len(x), generator=g)[:32]
        features = network.train().features(augmented(x[rows], g))
        task = F.cross_entropy(network.directions(features), labels[rows])
        general = None if targets is None else subsume_loss(network.frames(features), targets[rows])
        optimizer.zero_grad()
        optimizer.backward(task, general)
        optimizer.step()
    return network.eval()


def compare(
    unlabelled: int, shots: int, first_steps: int, steps: int, tests: int, out: Path, width: int = 16
) -> list[str]:
    """Train all three, draw the picture, and tell what came out in three sentences."""
    of, g = drawings("pool"), torch.Generator().manual_seed(0)
    pool, _ = clips(of, unlabelled, g)
    targets = targets_of(pool)
    x, labels = clips(of, 8 * CLASSES * shots, g)
    chosen = torch.cat([(labels == direction).nonzero()[:shots, 0] for direction in range(CLASSES)])
    x, labels = x[chosen], labels[chosen]
    known = targets_of(x)
    torch.manual_seed(0)
    start = Network(width, targets.shape[-1])
    random = {name: value.clone() for name, value in start.state_dict().items()}
    losses = first(start, pool, targets, first_steps)
    taught = {name: value.clone() for name, value in start.state_dict().items()}
    taught |= {name: value for name, value in random.items() if name.startswith("directions")}
    right = {}
    for name, state, shown in ((SCRATCH, random, None), (FIRST, taught, None), (PROJECTED, taught, known)):
        network = Network(width, targets.shape[-1])
        network.load_state_dict(state)
        right[name] = accuracy(*predictions(labelled(network, x, labels, shown, steps), tests))
    draw(losses, right, out)
    return [
        f"After {first_steps} steps on {unlabelled} clips without labels the network predicts the features of each of "
        f"{FRAMES} frames with a loss of {sum(losses[-10:]) / len(losses[-10:]):.3f}, at first {losses[0]:.3f} "
        "(2 - 2·cosine).",
        f"From {shots} labelled clips of each direction a network with a random start is right for "
        f"{right[SCRATCH]:.1f} % of {tests} clips of other emoji, one that had predicted frames first for "
        f"{right[FIRST]:.1f} %; guessing gives {100 / CLASSES:.0f} %.",
        f"With steps that do not go against the prediction of frames it is right for {right[PROJECTED]:.1f} %.",
    ]


def draw(losses: list[float], right: dict[str, float], out: Path) -> None:
    """Clips, the loss without labels, and the right answers."""
    figure = Figure(figsize=(9, 5.2), dpi=150, layout="constrained")
    grid = figure.subplot_mosaic([["clips", "clips"], ["loss", "bars"]], height_ratios=[1.15, 1])
    show_clips(grid["clips"])
    window = max(1, len(losses) // 20)
    grid["loss"].plot(range(window, len(losses) + 1), smoothed(losses, window) / 100, color=COLOURS[FIRST])
    grid["loss"].set(xlabel="steps without labels", ylabel="2 - 2·cos to frames' features")
    grid["loss"].spines[["top", "right"]].set_visible(False)
    show_bars(grid["bars"], right, COLOURS)
    figure.savefig(out)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="The direction of moving emoji from few labels.")
    parser.add_argument("--unlabelled", type=at_least(1), default=256, help="clips without labels (default: 256)")
    parser.add_argument("--shots", type=at_least(1), default=4, help="labelled clips of each direction (default: 4)")
    parser.add_argument("--first-steps", type=at_least(1), default=150, help="without labels (default: 150)")
    parser.add_argument("--steps", type=at_least(1), default=60, help="with labels (default: 60)")
    parser.add_argument("--clips", type=at_least(1), default=500, help="to test on (default: 500)")
    parser.add_argument("--out", type=Path, default=Path("iboot.png"), help="the picture to write")
    options = parser.parse_args()
    counts = (options.unlabelled, options.shots, options.first_steps, options.steps, options.clips)
    print(*compare(*counts, options.out), sep="\n")


if __name__ == "__main__":
    main()
