"""Clips of emoji that move, and the training of classifiers of their direction. No frame alone tells the direction.

An emoji of the embedded set lies at a random place of a white ground and moves to one of four sides, 2 or 3 pixels a
frame; what leaves on one side comes in on the other. So a frame has the same distribution for each direction, and the
frames of a clip to the left are those of a clip to the right in reverse: a network that treats every frame by itself
and averages its logits cannot do better than guess. The emoji of the test clips are never trained on.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor, nn

from prograd_fast import data

SIDE, DRAWING, FRAMES, CLASSES = 32, 14, 6, 4
DIRECTIONS = ("right", "left", "down", "up")
STEPS = torch.tensor([(0, 1), (0, -1), (1, 0), (-1, 0)])  # rows, columns
NOISE = 0.05  # its standard deviation


def drawings(split: str) -> Tensor:
    """(N, 3, SIDE, SIDE) in 0 ... 1: Noto's emoji of a split in the corner of a white frame."""
    emoji = data.load("emoji")
    rows = np.flatnonzero((emoji.split == split) & (emoji.style == "noto"))
    pictures = np.stack([np.asarray(emoji.open(int(row)).resize((DRAWING, DRAWING))) for row in rows])
    colours = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    return F.pad(colours, (0, SIDE - DRAWING) * 2, value=1.0)


def clips(of: Tensor, count: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clips (count, FRAMES, 3, SIDE, SIDE), 0 where it is white and 2 where it is black, and directions (count,)."""
    labels = torch.randint(CLASSES, (count,), generator=g)
    frames = of[torch.randint(len(of), (count,), generator=g)]
    speed = torch.randint(2, 4, (count, 1), generator=g)
    start = torch.randint(SIDE, (count, 1, 2), generator=g)
    moved = start + torch.arange(FRAMES)[:, None] * (STEPS[labels] * speed)[:, None]  # count, FRAMES, 2
    rows, columns = ((torch.arange(SIDE) - moved[..., axis, None]) % SIDE for axis in (0, 1))
    which = torch.arange(count)[:, None, None, None]
    pixels = frames.permute(0, 2, 3, 1)[which, rows[..., :, None], columns[..., None, :]].permute(0, 1, 4, 2, 3)
    return 2 - 2 * pixels + NOISE * torch.randn(pixels.shape, generator=g), labels


def trained(model: nn.Module, steps: int, rate: float = 4e-3, batch: int = 32) -> tuple[nn.Module, list[float]]:
    """The model after so many steps of AdamW on fresh clips, and its share of right answers on each batch."""
    of, g = drawings("pool"), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1, pct_start=0.2)
    right = []
    for _ in range(steps):
        x, labels = clips(of, batch, g)
        logits = model.train()(x)
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        right.append((logits.argmax(1) == labels).float().mean().item())
    return model.eval(), right


@torch.no_grad()
def predictions(model: Callable[[Tensor], Tensor], count: int, batch: int = 64) -> tuple[Tensor, Tensor]:
    """Logits (count, CLASSES) of clips of emoji that were not trained on, the same for every model, and directions."""
    of, g = drawings("test"), torch.Generator().manual_seed(1)
    logits, labels = [], []
    for begin in range(0, count, batch):
        x, directions = clips(of, min(batch, count - begin), g)
        logits.append(model(x))
        labels.append(directions)
    return torch.cat(logits), torch.cat(labels)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """In per cent."""
    return 100 * (logits.argmax(1) == labels).float().mean().item()


def smoothed(right: list[float], window: int) -> np.ndarray:
    """Running mean of shares, in per cent."""
    return 100 * np.convolve(right, np.ones(window) / window, mode="valid")


def show_clips(axes: Axes, count: int = 3) -> None:
    """Rows of frames, one clip each."""
    x, labels = clips(drawings("test"), 16, torch.Generator().manual_seed(4))
    chosen = [int((labels == direction).nonzero()[0]) for direction in (0, 1, 3)[:count]]
    rows = (1 - x[chosen] / 2).clamp(0, 1)
    framed = F.pad(rows, (1, 1, 1, 1), value=0.6)  # a line around each frame
    axes.imshow(framed.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2).numpy(), interpolation="nearest")
    axes.set_xticks([])
    middle = [(i + 0.5) * (SIDE + 2) for i in range(count)]
    axes.set_yticks(middle, [DIRECTIONS[int(labels[i])] for i in chosen])
    axes.tick_params(length=0)
    axes.set_title(f"clips of {FRAMES} frames; emoji that were not trained on", fontsize=10, loc="left")
    for side in axes.spines.values():
        side.set_visible(False)


def show_curves(axes: Axes, curves: dict[str, list[float]], colours: dict[str, str]) -> None:
    """Right answers over the steps of training, and what guessing gives."""
    for name, right in curves.items():
        window = max(1, len(right) // 12)
        axes.plot(np.arange(window, len(right) + 1), smoothed(right, window), color=colours[name], label=name)
    axes.axhline(100 / CLASSES, color="dimgray", linestyle=":", linewidth=1)
    axes.text(max(map(len, curves.values())), 100 / CLASSES - 2, "guessing", ha="right", va="top", fontsize=8)
    axes.set(xlabel="steps", ylabel="right directions in training, %", ylim=(0, 103))
    axes.legend(frameon=False, fontsize=8, loc="center right")


def show_bars(axes: Axes, accuracies: dict[str, float], colours: dict[str, str]) -> None:
    """Right answers on the test clips."""
    names = list(accuracies)
    axes.barh(range(len(names)), list(accuracies.values()), color=[colours[name] for name in names])
    for i, name in enumerate(names):
        axes.text(accuracies[name] + 1, i, f"{accuracies[name]:.1f}", va="center", fontsize=9)
    axes.axvline(100 / CLASSES, color="dimgray", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="right directions on test clips, %", xlim=(0, 119))
