"""Cut drawings out by clicks: a small SimpleClick against discs around the clicks.

`python -m examples.neighbours.simpleclick` takes about two minutes on two CPU cores and downloads nothing. A scene
shows two emojis or pieces of clip art in front of each other; what is not joined to the white border of a drawing is
its mask. One of them is to be cut out, and only clicks tell which. The drawings of the test are not those of training.
As the authors do, the network learns from clicks at random places, and then from clicks where it errs, with its mask.
"""

import argparse
import math
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

from examples.neighbours.counts import at_least
from prograd_fast.data import load_embedded
from prograd_fast.functional import normalised_focal_loss
from prograd_fast.neighbours import simpleclick as sc

SIDE, MOST = 64, 10  # pixels of a scene, clicks
NET, DISCS = "SimpleClick", "discs"
COLOURS = {NET: "#0072B2", DISCS: "#D55E00"}


def cut_out(picture: Image.Image) -> Image.Image:
    """The drawing with an alpha channel: transparent is the white that is joined to the border."""
    framed = Image.new("RGB", (picture.width + 2, picture.height + 2), "white")
    framed.paste(picture, (1, 1))
    ImageDraw.floodfill(framed, (0, 0), (255, 0, 255), thresh=40)
    alpha = (np.asarray(framed)[1:-1, 1:-1] != (255, 0, 255)).any(2)
    picture.putalpha(Image.fromarray((alpha * 255).astype(np.uint8)))
    return picture


@cache
def _drawings(name: str, part: str) -> list[Image.Image]:
    """At most 400 drawings of a set, cut out."""
    pictures = load_embedded(name)
    rows = np.flatnonzero(pictures.split == part)
    return [cut_out(pictures.open(int(row))) for row in np.random.default_rng(0).permutation(rows)[:400]]


def scenes(count: int, part: str, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures (count, 3, 64, 64) in 0 ... 1, and masks (count, 64, 64), 1 where the object is seen."""
    rng = np.random.default_rng(seed)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    while len(found) < count:
        colours = rng.integers(90, 256, (2, 3))
        ramp = np.linspace(0, 1, SIDE)[:, None, None]
        ground = ramp * colours[0] + (1 - ramp) * colours[1] + rng.normal(0, 6, (SIDE, SIDE, 3))
        canvas = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
        order = np.zeros((SIDE, SIDE), dtype=int)
        for k in (1, 2):
            drawings = _drawings(("emoji", "clipart")[rng.integers(2)], part)
            side = int(rng.integers(30, 52))
            thing = drawings[rng.integers(len(drawings))].resize((side, side), Image.Resampling.LANCZOS)
            at = tuple(rng.integers(-4, SIDE - side + 4, 2).tolist())
            canvas.paste(thing, at, thing)
            shape = Image.new("L", (SIDE, SIDE))
            shape.paste(thing.getchannel("A"), at)
            order[np.asarray(shape) > 127] = k
        mask = order == rng.integers(1, 3)
        if mask.sum() >= 250:
            found.append((np.asarray(canvas), mask))
    drawn, masks = (torch.from_numpy(np.stack(parts)) for parts in zip(*found, strict=True))
    return drawn.permute(0, 3, 1, 2) / 255, masks.long()


def small_net() -> sc.SimpleClick:
    """8×8 tokens of 8×8 pixels, windows of 4×4 tokens; positions are sines at first, as of masked autoencoders."""
    model = sc.SimpleClick(64, 8, 4, SIDE, 8, 4, widths=(16, 16, 16, 16), channels=24, radius=3)
    places, rates = (torch.arange(8) + 0.5) / 8, math.pi * torch.logspace(math.log10(0.5), math.log10(2), 16)
    waves = torch.cat([(places[:, None] * rates).sin(), (places[:, None] * rates).cos()], 1)
    both = torch.cat([waves[:, None].expand(8, 8, 32), waves[None].expand(8, 8, 32)], 2)
    model.backbone.position.data = both.reshape(1, 64, 64) / 2
    return model


def probabilities(model: sc.SimpleClick, pictures: Tensor, clicks: Tensor, previous: Tensor) -> Tensor:
    """Of the object, (B, 1, 64, 64)."""
    return model(pictures * 4 - 2, clicks, previous).sigmoid()


def random_clicks(masks: Tensor, g: torch.Generator) -> Tensor:
    """One to 8 clicks of each mask, at random places of the object and beside it, and room for 2 of either kind."""
    total = torch.randint(1, 9, (len(masks), 1), generator=g)
    inside = 1 + (torch.rand(total.shape, generator=g) * total).long()
    halves = []
    for weights, count in ((masks, inside), (1 - masks, total - inside)):
        places = torch.multinomial(weights.flatten(1).float(), 8, replacement=True, generator=g)
        made = torch.stack([places // SIDE, places % SIDE, torch.arange(8).expand_as(places)], 2)
        halves.append(F.pad(made.where((torch.arange(8) < count)[..., None], -1), (0, 0, 0, 2), value=-1))
    return torch.cat(halves, 1).float()


@torch.no_grad()
def clicked(model: sc.SimpleClick, pictures: Tensor, masks: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clicks and the mask before the last of them: those at random, then 0 to 2 where it errs."""
    clicks, previous = random_clicks(masks, g), torch.zeros(len(masks), 1, SIDE, SIDE)
    more = int(torch.randint(3, (), generator=g)) if torch.rand((), generator=g) < 0.5 else 0
    model.eval()
    for k in range(8, 8 + more):
        previous = probabilities(model, pictures, clicks, previous)
        none = torch.zeros_like(masks, dtype=torch.bool)
        places, positive = sc.next_clicks(previous[:, 0] > sc.THRESHOLD, masks, none)
        clicks[torch.arange(len(masks)), k + 10 * ~positive] = F.pad(places, (0, 1), value=k).float()
    model.train()
    return clicks, previous


def trained(pictures: Tensor, masks: Tensor, steps: int) -> sc.SimpleClick:
    """A network after so many steps of 16 scenes, mirrored and turned at random."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    model = small_net()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.15)
    for _ in range(steps):
        rows = torch.randint(len(pictures), (16,), generator=g)
        x, y = pictures[rows], masks[rows]
        if torch.rand((), generator=g) < 0.5:
            x, y = x.flip(3), y.flip(2)
        if torch.rand((), generator=g) < 0.5:
            x, y = x.mT, y.mT
        clicks, previous = clicked(model, x, y, g)
        loss = normalised_focal_loss(model(x * 4 - 2, clicks, previous)[:, 0], y).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def discs(radius: float, clicks: Tensor, _: Tensor) -> Tensor:
    """1 where a click on the object is at most so far away, and no click beside it is nearer; (B, 1, 64, 64)."""
    inside, beside = sc.click_maps(clicks, (SIDE, SIDE), radius, disk=False).split(1, 1)
    return sc.click_maps(clicks, (SIDE, SIDE), radius)[:, :1] * (inside <= beside)


def best_radius(masks: Tensor) -> int:
    """That of the highest mean IoU of discs over all clicks."""
    radii = range(4, 17, 2)
    found = [sc.simulate_clicks(partial(discs, r), masks, MOST).mean().item() for r in radii]
    return radii[found.index(max(found))]


def sentences(ious: dict[str, Tensor], radius: int) -> list[str]:
    """Three sentences about the IoU after each click (scenes, clicks), of the network and of discs."""
    needed = {name: [sc.clicks_needed(x, t).double().mean().item() for t in (0.85, 0.9)] for name, x in ious.items()}
    means = {name: [f"{x[:, min(k, x.shape[1]) - 1].mean():.1%}" for k in (1, 3, MOST)] for name, x in ious.items()}
    done = {name: [f"{(x[:, :k].amax(1) >= 0.85).double().mean():.0%}" for k in (3, MOST)] for name, x in ious.items()}
    ours, theirs = needed[NET], needed[DISCS]
    return [
        f"A scene needs {ours[0]:.2f} clicks to an IoU of 85 % and {ours[1]:.2f} to 90 %, where {MOST} are the most; "
        f"discs of {radius} pixels around the clicks need {theirs[0]:.2f} and {theirs[1]:.2f}.",
        f"The mean IoU is {means[NET][0]} after one click, {means[NET][1]} after 3 and {means[NET][2]} after {MOST}; "
        f"of discs it is {means[DISCS][0]}, {means[DISCS][1]} and {means[DISCS][2]}.",
        f"{done[NET][0]} of the scenes come to 85 % within 3 clicks and {done[NET][1]} within {MOST}, with discs "
        f"{done[DISCS][0]} and {done[DISCS][1]}.",
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
        ax.legend(fontsize=8, loc="lower right" if ax is top else "upper left")
    figure.savefig(path)


def _veiled(picture: Tensor, part: Tensor) -> np.ndarray:
    """The picture with all but a part of it made pale."""
    return (picture * part + (0.25 * picture + 0.7) * ~part).clamp(0, 1).permute(1, 2, 0).numpy()


def compare(n_scenes: int, steps: int, path: Path) -> list[str]:
    """Train, simulate the clicks, draw, and say what came out."""
    pictures, masks = scenes(n_scenes, "pool", 1)
    test, truth = scenes(max(8, n_scenes // 16), "test", 2)
    model, radius = trained(pictures, masks, steps), best_radius(masks[:64])
    made: list[tuple[int, Tensor, Tensor]] = []

    def predict(clicks: Tensor, previous: Tensor) -> Tensor:
        found = probabilities(model, test, clicks, previous)
        made.append((len(made) + 1, clicks.clone(), found))
        return found

    ious = {
        NET: sc.simulate_clicks(predict, truth, MOST),
        DISCS: sc.simulate_clicks(partial(discs, radius), truth, MOST),
    }
    draw(path, test, truth, [made[k] for k in (0, 1, 3)], ious)
    return sentences(ious, radius)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Clicks that a small SimpleClick needs to cut drawings out.")
    parser.add_argument("--scenes", type=at_least(1), default=2400, help="training scenes (default: 2400)")
    parser.add_argument("--steps", type=at_least(1), default=700, help="training steps (default: 700)")
    parser.add_argument("--out", type=Path, default=Path("simpleclick.png"), help="the picture to write")
    options = parser.parse_args()
    print(*compare(options.scenes, options.steps, options.out), sep="\n")


if __name__ == "__main__":
    main()
