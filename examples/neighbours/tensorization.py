"""Attack a small convolutional net whose weights are tensors with random ranks, and one with plain weights.

`python -m examples.neighbours.tensorization` takes about two minutes on two CPU cores and downloads nothing. The nets
learn the eight largest classes of emoji. The attack is projected gradient descent (PGD): within ±ε of each pixel it
looks for the picture that the net gets wrong. Where the ranks are random at test time too, each gradient is that of one
draw; the stronger attack, which knows of the defence, averages the gradients of several draws: it is the one that
counts.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from examples.neighbours.counts import at_least
from prograd_fast import data
from prograd_fast.neighbours.tensorization import FactorizedConv2d, TensorDropout, Tucker

CLASSES, SIDE, DRAWS = 8, 32, 8
PLAIN, LOW_RANK, RANDOM, RANDOM_KNOWN = "plain", "low rank", "random ranks", "random ranks, attack that knows"
COLOURS = {PLAIN: "#D55E00", LOW_RANK: "#E69F00", RANDOM: "#56B4E9", RANDOM_KNOWN: "#0072B2"}
WIDTHS = (16, 32, 48)


def emoji(stride: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Every `stride`-th picture (N, 3, SIDE, SIDE) in 0 ... 1, of all styles, and labels (N,); new emoji in "test"."""
    every = data.load("emoji")
    largest = np.argsort(-np.bincount(every.labels), kind="stable")[:CLASSES]
    parts = {}
    for split in ("pool", "test"):
        rows = np.flatnonzero((every.split == split) & np.isin(every.labels, largest))[::stride]
        pixels = np.stack([np.asarray(every.open(int(row)).resize((SIDE, SIDE))) for row in rows])
        labels = [int(np.flatnonzero(largest == every.labels[row])[0]) for row in rows]
        parts[split] = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, torch.tensor(labels)
    return parts


def network(dropout: float | None) -> nn.Module:
    """Three convolutions; plain (None), or with Tucker weights of about half the ranks and tensor dropout."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in zip((3, *WIDTHS[:-1]), WIDTHS, strict=True):
        if dropout is None:
            convolution: nn.Module = nn.Conv2d(inputs, outputs, 3, 2, 1)
        else:
            ranks = outputs // 2, max(3, inputs // 2), 3, 3
            std = (2 / (9 * inputs)) ** 0.5
            weight = Tucker((outputs, inputs, 3, 3), ranks, std)
            convolution = FactorizedConv2d(weight, 2, 1, TensorDropout(dropout, drop_test=True))
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * WIDTHS[-1], CLASSES))


def trained(model: nn.Module, pictures: Tensor, labels: Tensor, epochs: int, batch: int = 32) -> nn.Module:
    """After so many epochs of AdamW on pictures that are moved a little."""
    g = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3, weight_decay=0.02)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=g).split(batch):
            shift = torch.randint(-3, 4, (2,), generator=g).tolist()
            loss = F.cross_entropy(model(pictures[rows].roll(shift, (2, 3)) * 4 - 2), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def attacked(model: nn.Module, pictures: Tensor, labels: Tensor, size: float, draws: int, steps: int) -> Tensor:
    """PGD within ± `size` of each pixel, from the pictures on; each gradient is the mean over so many draws."""
    x = pictures.clone()
    for _ in range(steps):
        x.requires_grad_()
        loss = torch.stack([F.cross_entropy(model(x * 4 - 2), labels, reduction="sum") for _ in range(draws)]).mean()
        (gradient,) = torch.autograd.grad(loss, x)
        x = x.detach() + 2.5 * size / steps * gradient.sign()
        x = torch.minimum(torch.maximum(x, pictures - size), pictures + size).clamp(0, 1)
    return x


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    """In per cent, over fresh draws; the mean of several where the net is random."""
    return 100 * float(np.mean([(model(x * 4 - 2).argmax(1) == labels).float().mean() for _ in range(DRAWS)]))


def compare(epochs: int, steps: int, sizes: list[int], dropout: float, out: Path, stride: int = 1) -> list[str]:
    """Train and attack all, draw the picture, and tell what came out in three sentences."""
    parts = emoji(stride)
    nets = {name: trained(network(p), *parts["pool"], epochs) for name, p in
            ((PLAIN, None), (LOW_RANK, 0.0), (RANDOM, dropout))}  # fmt: skip
    nets[RANDOM_KNOWN] = nets[RANDOM]
    pictures, labels = parts["test"]
    right = {}
    torch.manual_seed(1)
    for name, net in nets.items():
        draws = DRAWS if name == RANDOM_KNOWN else 1
        right[name] = [
            accuracy(net, attacked(net, pictures, labels, size / 255, draws, steps) if size else pictures, labels)
            for size in [0, *sizes]
        ]
    draw(right, [0, *sizes], nets[PLAIN], pictures, labels, out, steps)
    last = sizes[-1]
    gain = right[RANDOM_KNOWN][-1] - right[PLAIN][-1]
    whole = [f"{right[name][0]:.1f}" for name in (PLAIN, LOW_RANK, RANDOM)]
    left = [f"{right[name][-1]:.1f}" for name in (PLAIN, LOW_RANK, RANDOM)]
    return [
        f"On {len(labels)} new emoji of {CLASSES} classes the plain net is right for {whole[0]} %, the one of low rank "
        f"for {whole[1]} %, and with random ranks for {whole[2]} %.",
        f"PGD within ±{last}/255 leaves {left[0]}, {left[1]} and {left[2]} %.",
        f"An attack that averages {DRAWS} draws leaves {right[RANDOM_KNOWN][-1]:.1f} % of the random net, "
        f"{abs(gain):.1f} points {'more' if gain >= 0 else 'less'} than of the plain one.",
    ]


def draw(
    right: dict[str, list[float]], sizes: list[int], net: nn.Module, x: Tensor, labels: Tensor, out: Path, steps: int
) -> None:
    """Accuracy against the size of the attack, and what the largest one looks like."""
    figure = Figure(figsize=(8.8, 3.9), dpi=150, layout="constrained")
    curves, pictures = figure.subplots(1, 2, width_ratios=[1.6, 1])
    for name, values in right.items():
        dash = "--" if name == RANDOM else "-"
        curves.plot(sizes, values, dash, marker="o", markersize=4, color=COLOURS[name], label=name)
    curves.axhline(100 / CLASSES, color="dimgray", linestyle=":", linewidth=1)
    curves.text(0, 100 / CLASSES - 1, "guessing", va="top", fontsize=8, color="dimgray")
    curves.set(xlabel="ε of the attack, in 1/255 of white", ylabel="right classes, %", ylim=(0, None), xticks=sizes)
    curves.set_title("New emoji under PGD", loc="left", fontsize=10)
    curves.legend(frameon=False, fontsize=8)
    curves.spines[["top", "right"]].set_visible(False)
    some = torch.arange(0, len(x), max(1, len(x) // 4))[:4]
    worst = attacked(net, x[some], labels[some], sizes[-1] / 255, 1, steps)
    shown = torch.stack([x[some], worst, 0.5 + (worst - x[some]) * 255 / sizes[-1] / 2]).clamp(0, 1)
    pictures.imshow(F.pad(shown, (1, 1, 1, 1), value=1.0).permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2).numpy())
    pictures.set_yticks([(i + 0.5) * (SIDE + 2) for i in range(3)], ["picture", "attacked", "change, enlarged"])
    pictures.set_xticks([])
    pictures.tick_params(length=0)
    pictures.set_title(f"the plain net's, ε = {sizes[-1]}/255", loc="left", fontsize=10)
    for side in pictures.spines.values():
        side.set_visible(False)
    figure.savefig(out)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="PGD against plain weights and against weights of random ranks.")
    parser.add_argument("--epochs", type=at_least(1), default=60, help="over the training pictures (default: 60)")
    parser.add_argument("--steps", type=at_least(1), default=10, help="of an attack (default: 10)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8], help="ε in 1/255 (default: 1 2 4 8)")
    parser.add_argument("--dropout", type=float, default=0.1, help="share of dropped ranks (default: 0.1)")
    parser.add_argument("--out", type=Path, default=Path("tensorization.png"), help="the picture to write")
    options = parser.parse_args()
    print(*compare(options.epochs, options.steps, options.sizes, options.dropout, options.out), sep="\n")


if __name__ == "__main__":
    main()
