"""The image heads of both models, in closed form.

Ridge regression tells from what the frozen tower's blocks say of a drawing what is said of it: the mean, over the words
that name it, of the sentence encoder's embeddings. With X the standardised features of all views (n, W) and Y the
embeddings around their mean (n, D):

    head(x) = x B,  B = (XᵀX / n + RIDGE·I)⁻¹ XᵀY / n
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from prograd_fast.clip import emoji_lite
from tools import emojis
from tools.build_drawings import Drawing, load_drawings
from tools.emojis import Emoji
from tools.features import Features
from tools.phrases import Phrases, drawing_phrase, with_tags

RIDGE = 0.2
NAME, WITH_KEYWORDS, KEYWORD = 0.3, 0.55, 0.15  # shares of what is said of an emoji
CLASS_NAME = 0.45  # of emoji-lite-named: share of the class name, if the emoji has a class
ROWS = 4096  # that are standardised at once
SCALES = torch.arange(4, 50.5, 0.5)  # of the logits; one of them is chosen
EVERY = 8  # drawings: one of so many tells the scale


def fit_heads() -> dict[str, dict[str, Tensor]]:
    """Weight (D, W) and bias (D,) of each model's head, by name."""
    phrases, records, shown, features = Phrases.load(), emojis.load(), load_drawings()[1], Features.load()
    views = [*features.emojis, *features.icons]
    n_emojis = features.emojis.shape[1]
    targets = {}
    for name in emoji_lite.NAMES:
        said = torch.stack([said_of(drawing, records, phrases, name.endswith("named")) for drawing in shown])
        of_emojis, of_icons = said[:n_emojis], said[n_emojis:]
        rows = torch.cat([of_emojis] * len(features.emojis) + [of_icons] * len(features.icons))
        targets[name] = rows - rows.mean(0)
    maps = ridge(torch.cat(views), torch.stack(list(targets.values())))
    return {name: {"weight": weight, "bias": bias} for name, (weight, bias) in zip(targets, maps, strict=True)}


def fit_scale(head: dict[str, Tensor]) -> float:
    """The factor of the cosines with which drawings make their own phrase likeliest, among all that name a drawing.

    A model that is trained with CLIP's loss learns it in the same way. The drawings are augmented, as in pretraining.
    """
    phrases, records, shown, features = Phrases.load(), emojis.load(), load_drawings()[1], Features.load()

    def phrase_of(drawing: Drawing) -> str:
        if drawing.emoji is None:
            return drawing_phrase(drawing)
        return with_tags(records[drawing.emoji].name, records[drawing.emoji].keywords)

    own = torch.tensor([phrases.index[phrase_of(drawing)] for drawing in shown])
    bank, right = own.unique(return_inverse=True)
    views = torch.cat([features.emojis[-1], features.icons[-1]])[::EVERY].float()
    cosines = F.normalize(F.linear(views, **head), dim=-1) @ phrases.targets[bank].T
    losses = [float(F.cross_entropy(scale * cosines, right[::EVERY])) for scale in SCALES]
    return float(SCALES[losses.index(min(losses))])


def said_of(drawing: Drawing, records: list[Emoji], phrases: Phrases, named: bool) -> Tensor:
    """(D,) the mean of what is said of a drawing: an emoji's name, keywords and class name; an icon's name and tags."""

    def embedded(*texts: str) -> Tensor:
        return phrases.targets[[phrases.index[text] for text in texts]].mean(0)

    if drawing.emoji is None:
        return embedded(drawing.name, drawing_phrase(drawing))
    emoji = records[drawing.emoji]
    words = (
        NAME * embedded(emoji.name)
        + WITH_KEYWORDS * embedded(with_tags(emoji.name, emoji.keywords))
        + KEYWORD * embedded(*(emoji.keywords or (emoji.name,)))
    )
    if named and emoji.class_name:
        return CLASS_NAME * embedded(emoji.class_name) + (1 - CLASS_NAME) * words
    return words


def ridge(features: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The maps from features (n, W) to each of the targets (M, n, D): weight (D, W) and bias (D,).

    Features are standardised by column, and the map takes them as they are.
    """
    n, width = features.shape
    chunks = range(0, n, ROWS)
    mean = sum(features[i : i + ROWS].double().sum(0) for i in chunks) / n
    variance = sum((features[i : i + ROWS].double() - mean).square().sum(0) for i in chunks) / n
    deviation = variance.sqrt()
    deviation = deviation + 1e-3 * deviation.mean()  # columns that hardly vary stay small
    gram, sums = torch.zeros(width, width).double(), torch.zeros(len(targets), width, targets.shape[-1]).double()
    for i in chunks:
        x = ((features[i : i + ROWS].double() - mean) / deviation).float()
        gram += x.T @ x
        sums += x.T @ targets[:, i : i + ROWS]
    solved = torch.linalg.solve(gram / n + RIDGE * torch.eye(width).double(), sums / n) / deviation[:, None]
    return [(map.T.float(), -(mean @ map).float()) for map in solved]
