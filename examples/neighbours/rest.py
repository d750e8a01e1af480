"""What moves where? A tiny captioner that trains itself on captions retrieved by CLIP, with and without projection.

`python -m examples.neighbours.rest` takes less than a minute on a CPU core and downloads nothing: emoji of the package
move to one of four sides (`moving_drawings.py`). The captioner learned to say "NAME moves DIRECTION" from clips of some
emoji. For clips of others, without labels, emoji-lite-named retrieves captions by its features of the drawing alone: it
may know the name, and cannot know the direction. Plain self-training learns from both; a projection on the likelihood
under the original captioner is to keep the direction.
"""

import argparse
import copy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

import prograd_fast as pf
from examples.neighbours.counts import at_least
from examples.neighbours.moving_drawings import DIRECTIONS, clips, drawings
from prograd_fast import data
from prograd_fast.neighbours.rest import caption_loss, diverse_captions, self_train

NAMES = ("mammal", "fruit", "land vehicle", "clothing", "smiling face", "building")
VOCABULARY = (*NAMES, "moves", *DIRECTIONS)
BEFORE, PLAIN, PROJECTED = "before", "self-trained", "self-trained, projected"
PARTS = {"name": "#0072B2", "direction": "#E69F00", "both": "#009E73"}
CAPTIONS = [(name, direction) for name in NAMES for direction in DIRECTIONS]
TOKENS = torch.tensor([[VOCABULARY.index(word) for word in (name, "moves", to)] for name, to in CAPTIONS])


class Captioner(nn.Module):
    """Three 3D convolutions, and a recurrent network that starts from their mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = ((3, width), (width, 2 * width), (2 * width, 4 * width))
        parts = [(nn.Conv3d(a, b, 3, (1, 2, 2), 1), nn.BatchNorm3d(b), nn.ReLU()) for a, b in sizes]
        self.trunk = nn.Sequential(*(layer for part in parts for layer in part))
        self.words = nn.Embedding(len(VOCABULARY) + 1, 4 * width)  # the last one is the beginning
        self.decoder = nn.GRU(4 * width, 4 * width, batch_first=True)
        self.output = nn.Linear(4 * width, len(VOCABULARY))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Clips (B, T, 3, H, W) and captions (B, L) to logits (B, L, V)."""
        seen = self.trunk(x.transpose(1, 2)).mean((2, 3, 4))
        before = F.pad(tokens[:, :-1], (1, 0), value=len(VOCABULARY))
        return torch.as_tensor(self.output(self.decoder(self.words(before), seen[None])[0]))


class Clips:
    """Clips of the emoji of a split with one of `NAMES`; tokens of their captions, and features of their drawings."""

    def __init__(self, split: str, count: int, g: torch.Generator) -> None:
        emoji = data.load("emoji")
        rows = np.flatnonzero((emoji.split == split) & (emoji.style == "noto"))
        label = torch.tensor([emoji.class_names.index(name) for name in NAMES])
        known = np.isin(emoji.labels[rows], label.numpy())
        self.rows, of = rows[known], drawings(split)[torch.from_numpy(known)]
        names = (torch.from_numpy(emoji.labels[self.rows])[:, None] == label).long().argmax(1)
        self.which = torch.randint(len(of), (count,), generator=g)
        state = [clips(of[i : i + 1], 1, g) for i in self.which.tolist()]
        self.x, to = (torch.cat(part) for part in zip(*state, strict=True))
        self.tokens = TOKENS[names[self.which] * len(DIRECTIONS) + to]

    def features(self, clip: pf.clip.LoadedClip) -> Tensor:
        """(N, D) unit rows: the image tower's, of the drawing of each clip."""
        emoji = data.load("emoji")
        with torch.no_grad():
            seen = clip.model.encode_image(torch.stack([clip.preprocess(emoji.open(int(row))) for row in self.rows]))
        return F.normalize(seen, dim=-1)[self.which]


def retrieved(of: Clips, count: int, mu: float) -> Tensor:
    """(N, K, L) tokens of the captions that emoji-lite-named finds."""
    clip = pf.clip.load_model("emoji-lite-named", device="cpu")
    sentences = [f"{name} moves {to}" for name, to in CAPTIONS]
    texts = pf.clip.ZeroShotTeacher(clip.model, clip.tokenizer, sentences, "a picture of {}.").class_features
    return TOKENS[diverse_captions(of.features(clip), texts, count, mu)]


@torch.no_grad()
def accuracies(captioner: Captioner, of: Clips) -> dict[str, float]:
    """Right names, directions and whole captions in per cent, of the likeliest word after word."""
    found = torch.zeros_like(of.tokens)
    for i in range(found.shape[1]):
        found[:, i] = captioner(of.x, found)[:, i].argmax(1)
    right = {"name": found[:, 0] == of.tokens[:, 0], "direction": found[:, 2] == of.tokens[:, 2]}
    right["both"] = right["name"] & right["direction"]
    return {part: 100 * values.float().mean().item() for part, values in right.items()}


def compare(count: int, steps: int, more: int, captions: int, mu: float, out: Path, width: int = 12) -> list[str]:
    """Train the captioner, let it train itself both ways, draw the picture, and tell what came out."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    source, target, tests = (Clips(split, count, g) for split in ("pool", "test", "test"))
    first = Captioner(width).train()
    optimizer = torch.optim.AdamW(first.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = torch.randint(count, (32,), generator=g)
        optimizer.zero_grad()
        caption_loss(first(source.x[rows], source.tokens[rows]), source.tokens[rows]).backward()
        optimizer.step()
    first.eval()  # the statistics of its batch norms stay as they are from here on
    pseudo = retrieved(target, captions, mu)
    share = 100 * (pseudo[..., 0] == target.tokens[:, None, 0]).float().mean().item()
    right = {BEFORE: accuracies(first, tests)}
    for way in (PLAIN, PROJECTED):
        student = copy.deepcopy(first)
        tuned = pf.ProGradAdamW(student.parameters(), lr=5e-4)
        drawn = torch.Generator().manual_seed(1)
        self_train(student, first, tuned, target.x, pseudo, more, drawn, project=way == PROJECTED)
        right[way] = accuracies(student, tests)
    draw(right, out)
    return sentences(right, share, captions)


def sentences(right: dict[str, dict[str, float]], share: float, captions: int) -> list[str]:
    """Three of them, from the numbers."""

    def both(way: str) -> str:
        return f"{right[way]['name']:.1f} % of the names and {right[way]['direction']:.1f} % of the directions"

    gain = right[PROJECTED]["both"] - right[PLAIN]["both"]
    return [
        f"Of emoji that it did not learn from, the captioner tells {both(BEFORE)}; {share:.1f} % of the {captions} "
        "captions retrieved for each clip have its name.",
        f"Trained on them it tells {both(PLAIN)}, with projected steps {both(PROJECTED)}.",
        f"Whole captions are right for {right[BEFORE]['both']:.1f} % before, {right[PLAIN]['both']:.1f} % after plain "
        f"and {right[PROJECTED]['both']:.1f} % after projected self-training: the projection gives {abs(gain):.1f} "
        f"points {'more' if gain > 0 else 'less'}.",
    ]


def draw(right: dict[str, dict[str, float]], out: Path) -> None:
    """Bars of names, directions and whole captions for each captioner."""
    figure = Figure(figsize=(8, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for side, (part, colour) in enumerate(PARTS.items()):
        places = [i + 0.26 * (side - 1) for i in range(len(right))]
        values = [of[part] for of in right.values()]
        axes.bar(places, values, 0.25, color=colour, label=part)
        for place, value in zip(places, values, strict=True):
            axes.text(place, value + 1, f"{value:.1f}", ha="center", fontsize=8)
    axes.set_xticks(range(len(right)), list(right))
    axes.set(ylabel="right, %", ylim=(0, 1.25 * max(max(of.values()) for of in right.values())))
    axes.set_title('"NAME moves DIRECTION", of emoji without labels', fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="A captioner of moving emoji that trains itself.")
    parser.add_argument(
        "--clips", type=at_least(1), default=512, help="to learn from, without labels, to test (default: 512)"
    )
    parser.add_argument("--steps", type=at_least(1), default=400, help="with labels (default: 400)")
    parser.add_argument("--more", type=at_least(1), default=100, help="steps of self-training (default: 100)")
    parser.add_argument("--captions", type=at_least(1), default=4, help="retrieved for each clip (default: 4)")
    parser.add_argument("--mu", type=float, default=0.2, help="weight of their likeness (default: 0.2)")
    parser.add_argument("--out", type=Path, default=Path("rest.png"), help="the picture to write")
    options = parser.parse_args()
    counts = (options.clips, options.steps, options.more, options.captions, options.mu)
    print(*compare(*counts, options.out), sep="\n")


if __name__ == "__main__":
    main()
