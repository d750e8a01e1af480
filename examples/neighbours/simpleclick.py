"""Cut drawings out by clicks: how many does a small SimpleClick need, with the normalised focal loss and without it?

`python -m examples.neighbours.simpleclick` takes some minutes on two CPU cores and downloads nothing. A scene
shows three emojis or pieces of clip art in front of each other; what is not joined to the white border of a drawing is
its mask. One of them is to be cut out, and only clicks tell which. The drawings of the test are not those of training.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

from prograd_fast.data import PictureSet, load_embedded
from prograd_fast.functional import normalised_focal_loss
from prograd_fast.neighbours import simpleclick as sc

SIDE, MOST = 64, 10  # pixels of a scene, clicks
COLOURS = {"normalised focal loss": "#0072B2", "cross-entropy": "#D55E00"}
Loss = Callable[[Tensor, Tensor], Tensor]


def cut_out(picture: Image.Image) -> Image.Image:
    """The drawing with an alpha channel: transparent is the white that is joined to the border."""
    framed = Image.new("RGB", (picture.width + 2, picture.height + 2), "white")
    framed.paste(picture, (1, 1))
    ImageDraw.floodfill(framed, (0, 0), (255, 0, 255), thresh=40)
    alpha = (np.asarray(framed)[1:-1, 1:-1] != (255, 0, 255)).any(2)
    picture.putalpha(Image.fromarray((alpha * 255).astype(np.uint8)))
    return picture


def scenes(count: int, part: str, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures (count, 3, 64, 64) in 0 ... 1, and masks (count, 64, 64), 1 where the object is seen."""
    rng = np.random.default_rng(seed)
    sets: list[tuple[PictureSet, np.ndarray]] = []
    for name in ("emoji", "clipart"):
        pictures = load_embedded(name)
        sets.append((pictures, np.flatnonzero(pictures.split == part)))
    found: list[tuple[np.ndarray, np.ndarray]] = []
    while len(found) < count:
        colours = rng.integers(90, 256, (2, 3))
        ramp = np.linspace(0, 1, SIDE)[:, None, None]
        ground = ramp * colours[0] + (1 - ramp) * colours[1] + rng.normal(0, 6, (SIDE, SIDE, 3))
        canvas = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
        order = np.zeros((SIDE, SIDE), dtype=int)
        for k in range(1, 4):
            pictures, rows = sets[rng.integers(2)]
            side = int(rng.integers(24, 42))
            thing = cut_out(pictures.open(int(rng.choice(rows)))).resize((side, side), Image.Resampling.LANCZOS)
            at = tuple(rng.integers(-4, SIDE - side + 4, 2).tolist())
            canvas.paste(thing, at, thing)
            shape = Image.new("L", (SIDE, SIDE))
            shape.paste(thing.getchannel("A"), at)
            order[np.asarray(shape) > 127] = k
        mask = order == rng.integers(1, 4)
        if mask.sum() >= 80:
            found.append((np.asarray(canvas), mask))
    drawn, masks = (torch.from_numpy(np.stack(parts)) for parts in zip(*found, strict=True))
    return drawn.permute(0, 3, 1, 2) / 255, masks.long()


def small_net() -> sc.SimpleClick:
    """8×8 tokens of 8×8 pixels; windows of 4×4 tokens."""
    return sc.SimpleClick(64, 8, 4, SIDE, 8, 4, widths=(24, 32, 48, 64), channels=32, radius=3)


def probabilities(model: sc.SimpleClick, pictures: Tensor, clicks: Tensor, previous: Tensor) -> Tensor:
    """Of the object, (B, 1, 64, 64)."""
    return model(pictures * 4 - 2, clicks, previous).sigmoid()


@torch.no_grad()
def clicked(model: sc.SimpleClick, pictures: Tensor, masks: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clicks and the mask before the last of them, as in training: one in the object, then up to 3 where it errs."""
    batch = len(pictures)
    clicks, previous = torch.full((batch, 8, 3), -1.0), torch.zeros(batch, 1, SIDE, SIDE)
    place = torch.multinomial(masks.flatten(1).float(), 1, generator=g)[:, 0]
    clicks[:, 0] = torch.stack([place // SIDE, place % SIDE, torch.zeros_like(place)], 1).float()
    model.eval()
    for k in range(1, 1 + int(torch.randint(4, (), generator=g))):
        previous = probabilities(model, pictures, clicks, previous)
        places, positive = sc.next_clicks(
            previous[:, 0] > sc.THRESHOLD, masks, torch.zeros_like(masks, dtype=torch.bool)
        )
        clicks[torch.arange(batch), k + 4 * ~positive] = F.pad(places, (0, 1), value=k).float()
    model.train()
    return clicks, previous


def trained(loss: Loss, pictures: Tensor, masks: Tensor, steps: int) -> sc.SimpleClick:
    """A network after so many steps of 16 scenes, mirrored at random."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    model = small_net()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(steps):
        rows = torch.randint(len(pictures), (16,), generator=g)
        x, y = pictures[rows], masks[rows]
        if torch.rand((), generator=g) < 0.5:
            x, y = x.flip(3), y.flip(2)
        clicks, previous = clicked(model, x, y, g)
        value = loss(model(x * 4 - 2, clicks, previous)[:, 0], y)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


LOSSES: dict[str, Loss] = {
    "normalised focal loss": lambda logits, masks: normalised_focal_loss(logits, masks).mean(),
    "cross-entropy": lambda logits, masks: F.binary_cross_entropy_with_logits(logits, masks.to(logits.dtype)),
}


def sentences(ious: dict[str, Tensor]) -> list[str]:
    """Three sentences about the IoU after each click (scenes, clicks), by loss."""
    needed = {name: [sc.clicks_needed(x, t).double().mean().item() for t in (0.85, 0.9)] for name, x in ious.items()}
    ours, other = (needed[name] for name in LOSSES)
    first, last = ({name: x[:, k].mean().item() for name, x in ious.items()} for k in (0, -1))
    ahead = [f"{abs(o - t):.2f} clicks {'fewer' if o < t else 'more'}" for o, t in zip(ours, other, strict=True)]
    failed = {name: (x.amax(1) < 0.9).double().mean().item() for name, x in ious.items()}
    names = list(LOSSES)
    return [
        f"With the normalised focal loss a scene needs {ours[0]:.2f} clicks to an IoU of 85 % and {ours[1]:.2f} to "
        f"90 %, where {MOST} are the most.",
        f"These are {ahead[0]} and {ahead[1]} than with cross-entropy; {failed[names[0]]:.0%} of the scenes never come "
        f"to 90 %, and {failed[names[1]]:.0%} with cross-entropy.",
        f"The mean IoU is {first[names[0]]:.1%} after one click and {last[names[0]]:.1%} after {MOST} "
        f"({first[names[1]]:.1%} and {last[names[1]]:.1%} with cross-entropy).",
    ]


def draw(
    path: Path, pictures: Tensor, masks: Tensor, shown: list[tuple[int, Tensor, Tensor]], ious: dict[str, Tensor]
) -> None:
    """Masks after one, two and four clicks; mean IoU and the share of scenes that are done, by clicks."""
    figure = Figure(figsize=(13, 6.4), dpi=120, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.35, 1))
    axes = left.subplots(4, 1 + len(shown))
    for row in range(4):
        seen = masks[row].bool()
        axes[row, 0].imshow(_veiled(pictures[row], seen), interpolation="bicubic")
        for k, (count, clicks, found) in enumerate(shown, start=1):
            ax, part = axes[row, k], found[row, 0] > sc.THRESHOLD
            ax.imshow(_veiled(pictures[row], part), interpolation="bicubic")
            for colour, made in zip(("#00c853", "#ff1744"), clicks[row].split(len(clicks[row]) // 2), strict=True):
                made = made[(made[:, 0] >= 0) & (made[:, 2] < count)]
                ax.plot(
                    made[:, 1].tolist(), made[:, 0].tolist(), "o", color=colour, markeredgecolor="white", markersize=6
                )
            iou = (part & seen).sum() / (part | seen).sum().clamp(min=1)
            ax.set_xlabel(f"IoU {iou:.0%}", fontsize=8, labelpad=2)
    for ax, title in zip(
        axes[0], ["object", *(f"{count} click{'s' * (count > 1)}" for count, *_ in shown)], strict=True
    ):
        ax.set_title(title, fontsize=10)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    top, bottom = right.subplots(2, 1, sharex=True)
    clicks_axis = range(1, MOST + 1)
    for name, x in ious.items():
        needed = [sc.clicks_needed(x, t).double().mean() for t in (0.85, 0.9)]
        label = f"{name}: NoC@85 {needed[0]:.2f}, NoC@90 {needed[1]:.2f}"
        top.plot(clicks_axis, (100 * x.mean(0)).tolist(), "o-", color=COLOURS[name], label=label)
        for target, style in ((0.85, "-"), (0.9, "--")):
            done = (x >= target).double().cummax(1).values.mean(0)
            bottom.plot(clicks_axis, (100 * done).tolist(), style, color=COLOURS[name], label=f"{name}, {target:.0%}")
    top.set(ylabel="mean IoU, %")
    bottom.set(xlabel="clicks", ylabel="scenes that came to the IoU, %", ylim=(0, 101))
    for ax in (top, bottom):
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8, loc="lower right")
    figure.savefig(path)


def _veiled(picture: Tensor, part: Tensor) -> np.ndarray:
    """The picture with all but a part of it made pale."""
    return (picture * part + (0.25 * picture + 0.7) * ~part).clamp(0, 1).permute(1, 2, 0).numpy()


def compare(n_scenes: int, steps: int, path: Path) -> list[str]:
    """Train with both losses, simulate the clicks, draw, and say what came out."""
    pictures, masks = scenes(n_scenes, "pool", 1)
    test, truth = scenes(max(8, n_scenes // 8), "test", 2)
    ious, shown = {}, []
    for name, loss in LOSSES.items():
        model = trained(loss, pictures, masks, steps)
        made: list[tuple[int, Tensor, Tensor]] = []

        def predict(clicks: Tensor, previous: Tensor, model: sc.SimpleClick = model, made: list = made) -> Tensor:  # type: ignore[type-arg]
            found = probabilities(model, test, clicks, previous)
            made.append((len(made) + 1, clicks.clone(), found))
            return found

        ious[name] = sc.simulate_clicks(predict, truth, MOST)
        shown = shown or [made[k] for k in (0, 1, 3)]
    draw(path, test, truth, shown, ious)
    return sentences(ious)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Clicks that a small SimpleClick needs to cut drawings out.")
    parser.add_argument("--scenes", type=int, default=1200, help="training scenes (default: 1200)")
    parser.add_argument("--steps", type=int, default=300, help="training steps (default: 300)")
    parser.add_argument("--out", type=Path, default=Path("simpleclick.png"), help="the picture to write")
    options = parser.parse_args()
    print(*compare(options.scenes, options.steps, options.out), sep="\n")


if __name__ == "__main__":
    main()
