"""Distil the frozen emoji tower into a small EdgeViT, with the teacher as a weight and as a constraint.

`python -m examples.neighbours.edgevit` takes about two minutes on two CPU cores and downloads nothing. The teacher's
zero-shot logits of the training pictures are computed once. An EdgeViT learns 44 classes from 596 emoji in three
styles: from the labels alone; from cross-entropy + ρ·distance to the teacher, for several ρ; and from the cross-entropy
with every step projected so that it does not go against the teacher (ProGrad), where there is no ρ.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

import prograd_fast as pf
from examples.neighbours.counts import at_least
from prograd_fast import data
from prograd_fast.neighbours.edgevit import EdgeViT

LABELS, PROJECTED = "labels alone", "projected"
SEEN, UNSEEN = "three styles that were trained on", "two styles that were not"


class Emoji:
    """Pictures (N, 3, 64, 64), labels, and the teacher's logits; of every `stride`-th picture."""

    def __init__(self, stride: int = 1) -> None:
        emoji = data.load("emoji")
        clip = pf.clip.load_model("emoji-lite-named", device="cpu")
        teacher = pf.clip.ZeroShotTeacher(clip.model, clip.tokenizer, emoji.class_names, "a picture of {}.")
        self.classes = len(emoji.class_names)
        seen = np.isin(emoji.style, data.EMOJI_TASK_STYLES)
        unseen = np.isin(emoji.style, data.EMOJI_UNSEEN_STYLES)
        self.parts = {}
        for name, style, split in (("train", seen, "pool"), (SEEN, seen, "test"), (UNSEEN, unseen, "test")):
            rows = np.flatnonzero(style & (emoji.split == split))[::stride]
            opened = [emoji.open(int(row)) for row in rows]
            pixels = torch.from_numpy(np.stack([np.asarray(picture.resize((64, 64))) for picture in opened]))
            with torch.no_grad():
                inputs = torch.stack([clip.preprocess(picture) for picture in opened])
                features = torch.cat([clip.model.encode_image(part) for part in inputs.split(8)])
            logits = teacher(F.normalize(features, dim=-1))
            pictures = pixels.permute(0, 3, 1, 2).float() / 255 * 4 - 2
            self.parts[name] = pictures, torch.from_numpy(emoji.labels[rows]), logits


def moved(pictures: Tensor, g: torch.Generator) -> Tensor:
    """Each picture up to 6 pixels aside; the ground is white."""
    side, margin = pictures.shape[-1], 6
    padded = F.pad(pictures, (margin,) * 4, value=2.0)
    places = torch.randint(2 * margin + 1, (len(pictures), 2), generator=g).tolist()
    return torch.stack([x[:, i : i + side, j : j + side] for x, (i, j) in zip(padded, places, strict=True)])


def trained(emoji: Emoji, epochs: int, weight: float | None, batch: int = 32) -> EdgeViT:
    """A student that learned from labels and teacher.

    Args:
        emoji: the pictures.
        epochs: over the training pictures.
        weight: ρ of the distance to the teacher; None to project the steps instead.
        batch: pictures of a step.
    """
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    student = EdgeViT((1, 1, 2, 1), (24, 48, 96, 96), 24, emoji.classes, mlp_ratio=2).train()
    pictures, labels, teacher = emoji.parts["train"]
    criterion = pf.losses.DualLoss(temperature=2.0)
    optimizer = pf.ProGradAdamW(student.parameters(), lr=2e-3, weight_decay=0.05, fused=True)
    steps = epochs * -(-len(labels) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1, pct_start=0.15)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=g).split(batch):
            task, general = criterion(student(moved(pictures[rows], g)), teacher[rows], labels[rows])
            optimizer.zero_grad()
            if weight is None:
                optimizer.backward(task, general)
            else:
                optimizer.backward(task + weight * general, None)
            optimizer.step()
            schedule.step()
    return student.eval()


@torch.no_grad()
def accuracies(emoji: Emoji, student: EdgeViT | None) -> dict[str, float]:
    """Right classes of each test part in per cent; of the teacher without a student."""
    right = {}
    for name in (SEEN, UNSEEN):
        pictures, labels, teacher = emoji.parts[name]
        logits = teacher if student is None else torch.cat([student(part) for part in pictures.split(128)])
        right[name] = 100 * (logits.argmax(1) == labels).float().mean().item()
    return right


def compare(epochs: int, weights: list[float], out: Path, stride: int = 1) -> list[str]:
    """Train all students, draw the picture, and tell what came out in three sentences."""
    emoji = Emoji(stride)
    ways: dict[str, float | None] = {LABELS: 0.0, **{f"ρ = {w:g}": w for w in weights}, PROJECTED: None}
    right = {name: accuracies(emoji, trained(emoji, epochs, weight)) for name, weight in ways.items()}
    teacher = accuracies(emoji, None)
    draw(right, teacher, out)
    best = max((name for name in right if name.startswith("ρ")), key=lambda name: right[name][SEEN])
    worst = min((name for name in right if name.startswith("ρ")), key=lambda name: right[name][SEEN])

    def both(name: str) -> str:
        return f"{right[name][SEEN]:.1f} and {right[name][UNSEEN]:.1f} %"

    return [
        f"The teacher is right for {teacher[SEEN]:.1f} % of new emoji in the styles that were trained on and "
        f"{teacher[UNSEEN]:.1f} % in two others; an EdgeViT that learned from the labels alone for {both(LABELS)}.",
        f"With a weight for the teacher it depends on ρ: {both(worst)} with {worst}, {both(best)} with {best}.",
        f"With projected steps, and no ρ, it is right for {both(PROJECTED)}.",
    ]


def draw(right: dict[str, dict[str, float]], teacher: dict[str, float], out: Path) -> None:
    """Bars for each way of training, lines for the teacher."""
    figure = Figure(figsize=(8.4, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for side, (part, colour) in zip((-0.2, 0.2), ((SEEN, "#0072B2"), (UNSEEN, "#E69F00")), strict=True):
        values = [of[part] for of in right.values()]
        places = [i + side for i in range(len(values))]
        axes.bar(places, values, 0.38, color=colour, label=f"new emoji, {part}")
        for place, value in zip(places, values, strict=True):
            axes.text(place, value + 0.7, f"{value:.1f}", ha="center", fontsize=8)
        axes.axhline(teacher[part], color=colour, linestyle="--", linewidth=1)
        axes.text(len(right) - 0.42, teacher[part] + 0.7, f"teacher {teacher[part]:.1f}", color=colour, fontsize=8)
    axes.set_xticks(range(len(right)), list(right))
    top = max([*teacher.values(), *(value for of in right.values() for value in of.values())])
    axes.set(ylabel="right classes, %", xlim=(-0.6, len(right) + 0.25), ylim=(0, 1.28 * top))
    axes.set_title("A small EdgeViT learns 44 classes of emoji from labels and a teacher", fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Distil the emoji tower into an EdgeViT, weighted and projected.")
    parser.add_argument("--epochs", type=at_least(1), default=12, help="over the training pictures (default: 12)")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.1, 1.0, 10.0], help="ρ (default: 0.1 1 10)")
    parser.add_argument("--out", type=Path, default=Path("edgevit.png"), help="the picture to write")
    options = parser.parse_args()
    print(*compare(options.epochs, options.weights, options.out), sep="\n")


if __name__ == "__main__":
    main()
