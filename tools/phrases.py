"""The phrases that the text tower learns, each with its sentence embedding: names, keywords and tags, without pictures."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from tools import WORK, emojis
from tools.build_drawings import Drawing, load_drawings
from tools.captions import CONTEXTS
from tools.classes import CLIPART_CLASSES, EMOJI_CLASSES
from tools.config import CONFIG
from tools.emojis import PRETRAINING
from tools.sentences import SentenceEncoder

PHRASES = WORK / "phrases.pt"
# How often a phrase of one kind is drawn, relative to others; the class names together make up 5 % of the draws.
WEIGHTS = {"emoji": 3.0, "emoji with keywords": 2.0, "keyword": 3.0, "icon": 0.7, "icon with tags": 0.5, "tag": 1.0}
CLASS_NAMES = "class name"
CLASS_NAME_SHARE = 0.05


@dataclass(frozen=True)
class Phrases:
    """N different phrases.

    Attributes:
        texts: the phrases.
        kinds: of each, a key of `WEIGHTS` or `CLASS_NAMES`.
        embeddings: (N, 384) fp16, their sentence embeddings.
        tokens: (T,) ids of CLIP's vocabulary that occur in any caption, ascending.
        token_embeddings: (T, 384) sentence embeddings of these tokens alone.
    """

    texts: list[str]
    kinds: list[str]
    embeddings: Tensor
    tokens: Tensor
    token_embeddings: Tensor

    @classmethod
    def load(cls) -> "Phrases":
        """Reads what `compute_phrases` saved."""
        return cls(**torch.load(PHRASES, weights_only=True))

    @cached_property
    def index(self) -> dict[str, int]:
        """Where each phrase is."""
        return {text: i for i, text in enumerate(self.texts)}

    @cached_property
    def targets(self) -> Tensor:
        """Unit rows (N, D): the embeddings around their mean, on the first D principal axes."""
        centred = self.embeddings.float() - self.embeddings.float().mean(0)
        axes = torch.linalg.svd(centred, full_matrices=False)[2][: CONFIG["embed_dim"]]
        return F.normalize(centred @ axes.T, dim=-1)

    def token_rows(self) -> Tensor:
        """(T, width): the tokens' embeddings on as many principal axes as the text tower is wide, deviation 0.05."""
        centred = self.token_embeddings - self.token_embeddings.mean(0)
        rows = centred @ torch.linalg.svd(centred, full_matrices=False)[2][: CONFIG["text_cfg"]["width"]].T
        return rows / rows.std() * 0.05

    def weights(self) -> list[float]:
        """How often each phrase is drawn."""
        class_name = CLASS_NAME_SHARE * len(self.texts) / self.kinds.count(CLASS_NAMES)
        return [WEIGHTS.get(kind, class_name) for kind in self.kinds]


def with_tags(name: str, tags: tuple[str, ...]) -> str:
    """A name and what else is known of it, as one phrase."""
    return ", ".join((name, *tags))


def drawing_phrase(drawing: Drawing) -> str:
    """An icon's name with at most four tags."""
    return with_tags(drawing.name, drawing.tags[:4])


def compute_phrases(packages: dict[str, Path]) -> None:
    """Collects the phrases and saves them with their embeddings; one thread, so that every run sums alike."""
    torch.set_num_threads(1)
    kinds: dict[str, str] = {}
    for name in (*EMOJI_CLASSES, *CLIPART_CLASSES):
        kinds.setdefault(name, CLASS_NAMES)
    for emoji in emojis.load():
        if emoji.split == PRETRAINING:
            kinds.setdefault(emoji.name, "emoji")
            kinds.setdefault(with_tags(emoji.name, emoji.keywords), "emoji with keywords")
            for keyword in emoji.keywords:
                kinds.setdefault(keyword, "keyword")
    for drawing in load_drawings()[1]:
        if drawing.emoji is None:
            kinds.setdefault(drawing.name, "icon")
            if drawing.tags:
                kinds.setdefault(drawing_phrase(drawing), "icon with tags")
            for tag in drawing.tags:
                kinds.setdefault(tag, "tag")
    texts = list(kinds)
    encoder, tokenizer = SentenceEncoder(packages["minilm"]), open_clip.SimpleTokenizer()
    captions = [*texts, *CONTEXTS, ". a an kind of"]
    special = {0, tokenizer.sot_token_id, tokenizer.eot_token_id}
    tokens = sorted(special.union(*(tokenizer.encode(text) for text in captions)))
    result = Phrases(
        texts,
        list(kinds.values()),
        encoder(texts).half(),
        torch.tensor(tokens),
        encoder([tokenizer.decode([token]).strip() or "a" for token in tokens]),
    )
    torch.save({**vars(result)}, PHRASES)
