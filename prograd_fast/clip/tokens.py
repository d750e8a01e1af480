"""Class names and texts to token ids, for any tokenizer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prograd_fast.clip.text_tower import TextTower

CHARACTERS_A_TOKEN = 100  # no vocabulary has words as long
Tokenizer = Callable[[list[str]], Tensor]
"""Texts to token ids (N, context_length) int64, as `open_clip.get_tokenizer(name)` returns it."""


def readable_class_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Class names as they enter prompts: underscores become spaces, outer blanks go.

    Raises:
        TypeError: `class_names` is one string, or holds something that is not a string.
        ValueError: there is none, one is empty, or two are the same.
    """
    if isinstance(class_names, str):
        raise TypeError(f"class_names: expected a list of strings, one per class, got one string, {class_names!r}.")
    for i, name in enumerate(class_names):
        if not isinstance(name, str):
            raise TypeError(f"class_names[{i}]: expected a string, got {name!r} ({type(name).__name__}).")
    names = tuple(name.replace("_", " ").strip() for name in class_names)
    if not names:
        raise ValueError("class_names: expected one name per class, got an empty list.")
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        if not name:
            raise ValueError(f"class_names[{i}]: expected a readable name, got {class_names[i]!r}.")
        if name in seen:
            raise ValueError(
                f"class_names[{seen[name]}] and class_names[{i}] are both {name!r}, so their prompts are the same. "
                "Merge the two classes or give them different names."
            )
        seen[name] = i
    return names


def refuse_equal_names(tokenizer: Tokenizer, names: Sequence[str], folder: object) -> None:
    """ValueError where two names have the same token ids: no prompt tells their classes apart."""
    seen: dict[tuple[int, ...], str] = {}
    for name, ids in zip(names, tokenizer(list(names)).tolist(), strict=True):
        if (other := seen.setdefault(tuple(ids), name)) != name:
            raise ValueError(f"{folder}: the model reads the class names {other!r} and {name!r} alike; rename one")


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of texts, and where in them each text's own tokens are.

    What a tokenizer puts around a text is read off the empty text and a single letter, so that this holds for any
    vocabulary: start and end of text for OpenAI's, only an end for SentencePiece ones.

    Attributes:
        ids: (N, context_length) int64: special tokens that open every text, its own tokens, end of text, padding.
        start: number of opening special tokens (1 for OpenAI's vocabulary).
        counts: (N,) int64, number of the text's own tokens.
    """

    ids: Tensor
    start: int
    counts: Tensor

    @classmethod
    def of(cls, tokenizer: Tokenizer, tower: TextTower, texts: Sequence[str], room: int = 0) -> "TokenizedTexts":
        """Tokenise `texts`, each of which must leave `room` positions of the tower's context free.

        A tokenizer truncates in silence, so a text that ends at the very last position counts as too long.

        Raises:
            ValueError: a text has no tokens or too many, or the tokenizer is another model's.
        """
        most = CHARACTERS_A_TOKEN * tower.context_length
        for text in texts:
            if len(text) > most:  # a tokenizer would take time that grows with the square of its length
                raise ValueError(f"{text[:50]!r} ... is too long: {len(text)} characters. Shorten it.")
        ids = tokenizer(["", "X", *texts])
        _check_vocabulary(ids, tower, len(texts) + 2)
        empty, letter, ids = ids[0], ids[1], ids[2:]
        start = int(torch.eq(letter, empty).int().cumprod(0).sum())
        is_end = ids[:, start:] == empty[start]
        counts = torch.where(is_end.any(1), is_end.int().argmax(1), ids.shape[1] - start)
        for text, count in zip(texts, counts.tolist(), strict=True):
            if count == 0:
                raise ValueError(f"{text!r} has no tokens in this tokenizer's vocabulary. Use readable words.")
            if start + count + max(room, 1) >= ids.shape[1]:
                raise ValueError(
                    f"{text!r} is too long: its tokens, {room} context tokens and the end of text do not fit in the "
                    f"text tower's {ids.shape[1]} positions. Shorten it" + (" or lower n_ctx." if room else ".")
                )
        return cls(ids, start, counts)


def _check_vocabulary(ids: object, tower: TextTower, n_texts: int) -> None:
    expected, known = (n_texts, tower.context_length), tower.embedding.num_embeddings
    if not isinstance(ids, Tensor) or ids.shape != expected:
        got = f"shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
    elif int(ids.max()) >= known:
        got = f"id {int(ids.max())}"
    else:
        return
    raise ValueError(
        f"tokenizer: expected token ids of shape {expected}, all below {known}, which the text tower takes, got {got}. "
        "Use the model's own tokenizer, open_clip.get_tokenizer(model_name)."
    )
