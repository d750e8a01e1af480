"""Learned context tokens in words: the nearest rows of the model's token embedding, as CoOp's interpret_prompt."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize


class Word(NamedTuple):
    """A token of the vocabulary.

    Attributes:
        id: its row in the token embedding.
        text: as readers see it; a part of a word that goes on ends in "-".
        value: its cosine to a context token, or its Euclidean distance.
    """

    id: int
    text: str
    value: float


class Neighbours(NamedTuple):
    """The words near a context token.

    Attributes:
        norm: length of the token.
        by_cosine: the words of highest cosine, the nearest first.
        by_distance: the words of lowest Euclidean distance, the nearest first.
    """

    norm: float
    by_cosine: list[Word]
    by_distance: list[Word]


@torch.no_grad()
def nearest_words(context: Tensor, embedding: Tensor, tokenizer: Any, top: int) -> list[Neighbours]:
    """Find the nearest words of each context token.

    Source: `KaiyangZhou/CoOp:interpret_prompts/interpret_prompt.py`, which has the distances.

    Args:
        context: (M, d).
        embedding: (V, d), the model's token embedding.
        tokenizer: its tokenizer.
        top: how many words of each kind.

    Returns:
        One entry for each of the M tokens.
    """
    context, embedding = context.float(), embedding.float()
    cosines = normalize(context, dim=-1) @ normalize(embedding, dim=-1).T
    distances = torch.cdist(context, embedding, compute_mode="donot_use_mm_for_euclid_dist")
    top = min(top, len(embedding))
    norms = context.norm(dim=-1).tolist()
    near = _words(tokenizer, *cosines.topk(top)), _words(tokenizer, *distances.topk(top, largest=False))
    return [Neighbours(*row) for row in zip(norms, *near, strict=True)]


def _words(tokenizer: Any, values: Tensor, ids: Tensor) -> list[list[Word]]:
    rows = zip(ids.tolist(), values.tolist(), strict=True)
    return [[Word(i, text_of(tokenizer, i), value) for i, value in zip(*row, strict=True)] for row in rows]


def text_of(tokenizer: Any, token: int) -> str:
    """A token of the vocabulary as readers see it; its number where the tokenizer cannot tell."""
    inner = getattr(tokenizer, "tokenizer", tokenizer)  # open_clip's HFTokenizer holds Hugging Face's
    decode = getattr(inner, "decode", None)
    if decode is None:
        return f"#{token}"
    text = decode([token])
    ends = getattr(inner, "decoder", None)  # OpenAI's vocabulary: a token that ends a word has a mark
    whole = ends is None or str(ends[token]).endswith(("</w>", ">"))
    return text.strip() if whole else f"{text}-"
