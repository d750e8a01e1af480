"""Expressions of emoji faces, helped by action units of other drawings: does the projection do without ρ?

`python -m examples.neighbours.auvit` takes less than a minute on two CPU cores and downloads nothing. The expressions
are the four face classes of the embedded emojis; the action units of each emoji were written down by hand, below. Each
split learns expressions from half of the emojis, in two styles of drawing, and action units from the same emojis in a
third style; it is tested on the emojis of the other half. The trunk's first layers are the embedded model's
EfficientNet-Lite0, frozen. Compared are the expression alone, the sum CE + ρ·BCE, and CE projected by BCE.
"""

import argparse
import json
import zipfile
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

import prograd_fast as pf
from examples.neighbours.counts import at_least
from prograd_fast.clip.emoji_lite import load_emoji_lite
from prograd_fast.files.demo import demo_file
from prograd_fast.neighbours.auvit import AUViT, two_head_losses

EXPRESSIONS = ("smiling face", "sad face", "sick face", "neutral face")
# numbers of the Facial Action Coding System: 7 that are seen in the upper face, 14 in the lower
UNITS = (1, 2, 4, 5, 6, 7, 43, 9, 10, 12, 14, 15, 16, 17, 19, 20, 23, 24, 25, 26, 27)
FACES: dict[str, tuple[int, ...]] = {
    "grinning face with big eyes": (5, 12, 25, 26),
    "grinning face with smiling eyes": (6, 12, 25, 26),
    "beaming face with smiling eyes": (6, 12, 16, 25),
    "grinning squinting face": (6, 7, 12, 25, 26, 43),
    "rolling on the floor laughing": (6, 7, 12, 25, 26, 43),
    "melting face": (12,),
    "smiling face with halo": (6, 12),
    "smiling face with hearts": (6, 12),
    "smiling face": (6, 12),
    "face without mouth": (),
    "face in clouds": (),
    "smirking face": (7, 14),
    "unamused face": (7, 15),
    "lying face": (2, 15),
    "shaking face": (25, 26),
    "face with thermometer": (1, 15),
    "sneezing face": (7, 9, 25, 43),
    "hot face": (1, 19, 25),
    "cold face": (16, 20, 25),
    "woozy face": (1, 7, 20),
    "worried face": (1, 15),
    "astonished face": (1, 2, 5, 25, 27),
    "distorted face": (5, 24),
    "face holding back tears": (1, 12, 17),
    "crying face": (1, 15, 17),
    "face screaming in fear": (1, 5, 25, 27),
    "persevering face": (4, 7, 15, 43),
    "downcast face with sweat": (15, 43),
    "weary face": (1, 20, 25, 27, 43),
    "tired face": (4, 7, 20, 25, 27, 43),
    "yawning face": (1, 25, 27, 43),
}
LABELLED_STYLES = ("noto", "twemoji")
STYLES = (*LABELLED_STYLES, "fluent-flat")
PLAIN, PROJECTED = "expression alone", "projected"
BATCH = 8  # of each half


class Faces(NamedTuple):
    """All drawings of the emojis above."""

    pictures: Tensor  # (F, 64, 64, 3) uint8
    features: Tensor  # (F, C, 14, 14) of the frozen layers
    emoji: Tensor  # (F,) index into FACES
    labelled: Tensor  # (F,) bool: of a style that has expressions
    expression: Tensor  # (F,)
    units: Tensor  # (F, 21)


@torch.no_grad()
def load_faces(limit: int | None = None) -> Faces:
    """The faces; the first `limit` alone for a quick run."""
    titles, rows = list(FACES), []
    with zipfile.ZipFile(demo_file("emoji.zip", "the set of faces")) as content:
        about = json.loads(content.read("pictures.json"))
        for entry in about["pictures"]:
            expression = about["class_names"][entry["label"]]
            if entry["style"] in STYLES and expression in EXPRESSIONS and entry["title"] in FACES:
                picture = np.asarray(Image.open(BytesIO(content.read(entry["file"]))).convert("RGB"))
                rows.append((picture, titles.index(entry["title"]), entry["style"], EXPRESSIONS.index(expression)))
    drawn, emoji, styles, expressions = zip(*rows[:limit], strict=True)
    pictures = torch.from_numpy(np.stack(drawn))
    tower = load_emoji_lite()[0].visual.trunk
    frozen = nn.Sequential(tower.conv_stem, tower.bn1, *tower.blocks[:5])  # stride 16
    enlarged = nn.functional.interpolate(pictures.permute(0, 3, 1, 2) / 127.5 - 1, (224, 224), mode="bilinear")
    features = torch.cat([frozen(part) for part in enlarged.split(16)])
    units = torch.tensor([[float(unit in FACES[titles[i]]) for unit in UNITS] for i in emoji])
    labelled = torch.tensor([style in LABELLED_STYLES for style in styles])
    return Faces(pictures, features, torch.tensor(emoji), labelled, torch.tensor(expressions), units)


def split(faces: Faces, seed: int) -> Tensor:
    """(F,) bool, drawings to learn from: half of the emojis of each expression."""
    g, learn = torch.Generator().manual_seed(seed), torch.zeros(len(FACES), dtype=torch.bool)
    for expression in range(len(EXPRESSIONS)):
        emojis = faces.emoji[faces.expression == expression].unique()
        learn[emojis[torch.randperm(len(emojis), generator=g)[: (len(emojis) + 1) // 2]]] = True
    return learn[faces.emoji]


def tested(faces: Faces, learn: Tensor, rho: float | None, project: bool, steps: int, seed: int) -> tuple[float, float]:
    """Accuracy and action-unit loss on the other emojis after training with one of the losses."""
    torch.manual_seed(seed)
    trunk = nn.Conv2d(faces.features.shape[1], 32, 3, padding=1)
    model = AUViT(trunk, 32, len(EXPRESSIONS), (1, 1), heads=4, mlp_ratio=2, patches=2)
    heads = list(model.au_head.parameters())
    shared = [p for name, p in model.named_parameters() if not name.startswith("au_head.")]
    of_heads = torch.optim.AdamW(heads, lr=3e-3)
    optimizer = (pf.ProGradAdamW if project else torch.optim.AdamW)(shared, lr=3e-3, weight_decay=0.05)
    parts = [(learn & part).nonzero()[:, 0] for part in (faces.labelled, ~faces.labelled)]
    for _ in range(steps):
        first, second = (rows[torch.randint(len(rows), (BATCH,))] for rows in parts)
        told = model(faces.features[torch.cat([first, second])])
        ce, au = two_head_losses(*told, faces.expression[first], faces.units[second])
        optimizer.zero_grad()
        of_heads.zero_grad()
        if isinstance(optimizer, pf.ProGradAdamW):
            au.backward(inputs=heads, retain_graph=True)  # the optimizer of the shared part leaves them alone
            optimizer.backward(ce, au)
        elif rho is None:
            ce.backward()
        else:
            (ce + rho * au).backward()
        optimizer.step()
        of_heads.step()
    with torch.no_grad():
        expressions, units = model.eval()(faces.features[~learn])
        loss = nn.functional.binary_cross_entropy_with_logits(units, faces.units[~learn])
    return (expressions.argmax(1) == faces.expression[~learn]).double().mean().item(), loss.item()


def sentences(results: dict[str, Tensor], chance: float) -> list[str]:
    """Three sentences about accuracies and action-unit losses (splits, 2), by method."""
    mean = {name: r.mean(0).tolist() for name, r in results.items()}
    sums = {name: m for name, m in mean.items() if name.startswith("ρ")}
    best, worst = max(sums, key=lambda n: sums[n][0]), min(sums, key=lambda n: sums[n][0])
    difference = results[PROJECTED][:, 0] - results[best][:, 0]
    error = difference.std().item() / len(difference) ** 0.5 if len(difference) > 1 else float("inf")
    gap = difference.mean().item()
    verdict = (
        "may be needed or not: no method is better than the commonest class"
        if max(m[0] for m in mean.values()) <= chance
        else "is not shown to be needed: the projection, which has none, is within two standard errors of it or above"
        if gap >= -2 * error
        else "is still needed: no projection makes up for a well chosen one"
    )
    return [
        f"On emojis that were not learned, the expression alone is right for {mean[PLAIN][0]:.1%} of the drawings (the "
        f"commonest class: {chance:.1%}), the sum of losses for {sums[worst][0]:.1%} ({worst}) to {sums[best][0]:.1%} "
        f"({best}), and the projection for {mean[PROJECTED][0]:.1%}.",
        f"By these numbers ρ {verdict} ({gap:+.1%} ± {error:.1%} against the best ρ, which was chosen on the test).",
        f"The action-unit loss there is {mean[PROJECTED][1]:.3f} with the projection, {sums[best][1]:.3f} with {best} "
        f"and {min(m[1] for m in sums.values()):.3f} at best: the projection keeps the trunk from working against "
        "action units, and does not teach it them.",
    ]


def draw(path: Path, faces: Faces, results: dict[str, Tensor]) -> None:
    """Some faces with their action units; accuracy and action-unit loss against ρ."""
    figure = Figure(figsize=(12, 6.4), dpi=120, layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 2.1))
    shown = [i for i in range(0, len(FACES), 4) if (faces.emoji == i).any()]
    axes = np.atleast_1d(top.subplots(1, len(shown)))
    for ax, i in zip(axes, shown, strict=True):
        row = (faces.emoji == i).nonzero()[0, 0]
        ax.imshow(faces.pictures[row].numpy(), interpolation="bicubic")
        units = ", ".join(map(str, FACES[list(FACES)[i]])) or "none"
        ax.set_title(f"{EXPRESSIONS[int(faces.expression[row])]}\nAU {units}", fontsize=8)
        ax.axis("off")
    panels = bottom.subplots(1, 2)
    titles = ("expressions that are right, % (new emojis)", "action-unit loss (new emojis)")
    sums = {float(name.split()[-1]): r for name, r in results.items() if name.startswith("ρ")}
    for k, (ax, title) in enumerate(zip(panels, titles, strict=True)):
        unit = 100 if k == 0 else 1
        middle = [unit * r[:, k].mean().item() for r in sums.values()]
        spread = [unit * _standard_error(r[:, k]) for r in sums.values()]
        ax.errorbar(list(sums), middle, spread, color="#0072B2", marker="o", capsize=3, label="CE + ρ·BCE")
        for name, colour in ((PROJECTED, "#009E73"), (PLAIN, "#D55E00")):
            value, error = unit * results[name][:, k].mean().item(), unit * _standard_error(results[name][:, k])
            ax.axhline(value, color=colour, label="CE projected by BCE" if name == PROJECTED else name)
            ax.axhspan(value - error, value + error, color=colour, alpha=0.12, linewidth=0)
        ax.set(xscale="log", xlabel="ρ", title=title)
        ax.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    bottom.supxlabel(f"mean and standard error of {len(results[PLAIN])} splits of the emojis", fontsize=8)
    figure.savefig(path)


def _standard_error(values: Tensor) -> float:
    return values.std(correction=min(1, len(values) - 1)).item() / len(values) ** 0.5


def compare(steps: int, splits: int, rhos: list[float], path: Path, limit: int | None = None) -> list[str]:
    """Train all methods on all splits, draw, and say what came out."""
    faces = load_faces(limit)
    methods: dict[str, tuple[float | None, bool]] = {PLAIN: (None, False)}
    methods |= {f"ρ = {rho:g}": (rho, False) for rho in rhos}
    methods[PROJECTED] = (None, True)
    learned = [split(faces, seed) for seed in range(splits)]
    results = {
        name: torch.tensor([tested(faces, rows, *how, steps, seed) for seed, rows in enumerate(learned)])
        for name, how in methods.items()
    }
    draw(path, faces, results)
    commonest = [faces.expression[~rows].bincount().max() / (~rows).sum() for rows in learned]
    return sentences(results, torch.stack(commonest).mean().item())


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Expressions and action units: a weighted sum against a projection.")
    parser.add_argument("--steps", type=at_least(1), default=150, help="training steps (default: 150)")
    parser.add_argument("--splits", type=at_least(1), default=3, help="splits of the emojis (default: 3)")
    parser.add_argument("--rho", type=float, nargs="+", default=[0.1, 1.0, 10.0], help="weights (default: 0.1 1 10)")
    parser.add_argument("--out", type=Path, default=Path("auvit.png"), help="the picture to write")
    options = parser.parse_args()
    print(*compare(options.steps, options.splits, options.rho, options.out), sep="\n")


if __name__ == "__main__":
    main()
