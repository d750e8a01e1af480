"""Class names and texts to token ids, for any tokenizer."""

import functools
import html
import logging
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prograd_fast.clip.text_tower import TextTower

CHARACTERS_A_TOKEN = 100  # no vocabulary has words as long
_WIDE = re.compile("[\uff01-\uffef]+")  # full-width and half-width forms
_log = logging.getLogger(__name__)

Tokenizer = Callable[[list[str]], Tensor]
"""Texts to token ids (N, context_length) int64, as `open_clip.get_tokenizer(name)` returns it."""


def clean_words(text: str) -> str:
    """Words as they enter prompts: class names, the words that a context starts from, templates.

    HTML entities are read, underscores become spaces (CoOp), full-width signs get their usual width, accents are put
    together (NFC), and runs of blanks become one space: what open_clip's tokenizers do, here for any. Cleaning
    twice is the same as once.
    """
    plain = _WIDE.sub(lambda wide: unicodedata.normalize("NFKC", wide[0]), html.unescape(text))
    plain = " ".join(unicodedata.normalize("NFC", plain.replace("_", " ")).split())
    return plain if plain == text else clean_words(plain)  # "&amp;amp;" takes two rounds


def readable_class_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Class names as they enter prompts, see `clean_words`.

    Two may be the same, as in ImageNet's list: `equal_prompts` tells.

    Raises:
        TypeError: `class_names` is one string, or holds something that is not a string.
        ValueError: there is none, or one is empty.
    """
    if isinstance(class_names, str):
        raise TypeError(f"class_names: expected a list of strings, one per class, got one string, {class_names!r}.")
    for i, name in enumerate(class_names):
        if not isinstance(name, str):
            raise TypeError(f"class_names[{i}]: expected a string, got {name!r} ({type(name).__name__}).")
    names = tuple(clean_words(name) for name in class_names)
    if not names:
        raise ValueError("class_names: expected one name per class, got an empty list.")
    for i, name in enumerate(names):
        if not name:
            raise ValueError(f"class_names[{i}]: expected a readable name, got {class_names[i]!r}.")
    return names


def equal_prompts(tokenizer: Tokenizer, names: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs i < j of names that the tokenizer cannot tell apart, such as "Dog" and "dog": i is the first such name.

    A model gives such classes the same score, so that the second one is never predicted.
    """
    most = CHARACTERS_A_TOKEN * 77  # as in `TokenizedTexts.of`, which refuses longer names
    return _equal_rows(tokenizer([name[:most] for name in readable_class_names(names)]))


def refuse_equal_names(tokenizer: Tokenizer, names: Sequence[str], folder: Path | str) -> None:
    """ValueError if two classes of a user's folder have names that the model cannot tell apart."""
    if pairs := equal_prompts(tokenizer, names):
        i, j = pairs[0]
        raise ValueError(
            f"{folder}: the classes {names[i]!r} and {names[j]!r} are the same words to the model, so the second one "
            "would never be predicted; merge them, or give them different names in classes.txt"
        )


def warn_of_equal_names(names: Sequence[str], ids: Tensor) -> None:
    """Write a line to the log, once, if rows of (C, L) token ids are the same."""
    if pairs := _equal_rows(ids):
        i, j = pairs[0]
        more = f" ({len(pairs) - 1} more)" if len(pairs) > 1 else ""
        _say_once(
            f"the classes {i} ({names[i]!r}) and {j} ({names[j]!r}) are the same words to the model{more}: "
            "their scores are equal, and the first one is predicted"
        )


@functools.cache
def _say_once(message: str) -> None:  # student and teacher look at the same names
    _log.warning(message)


def _equal_rows(ids: Tensor) -> list[tuple[int, int]]:
    first: dict[tuple[int, ...], int] = {}
    rows = [tuple(row) for row in ids.tolist()]
    return [(first[row], i) for i, row in enumerate(rows) if first.setdefault(row, i) != i]


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
    def of(
        cls, tokenizer: Tokenizer, tower: TextTower, texts: Sequence[str], room: int = 0, inside: bool = False
    ) -> "TokenizedTexts":
        """Tokenise `texts`, each of which must leave `room` positions of the tower's context free.

        With `inside` they get the tokens that they have behind another word: RoBERTa's hold the blank before them.

        A tokenizer truncates in silence, so a text that ends at the very last position counts as too long.

        Raises:
            ValueError: a text has no tokens or too many, or the tokenizer is another model's.
        """
        most = CHARACTERS_A_TOKEN * tower.context_length
        for text in texts:
            if len(text) > most:  # a tokenizer would take time that grows with the square of its length
                raise ValueError(f"{text[:50]!r} ... is too long: {len(text)} characters. Shorten it.")
        ids = tokenizer(["", "X", *(f"X {text}" if inside else text for text in texts)])
        _check_vocabulary(ids, tower, len(texts) + 2)
        empty, letter, ids = ids[0], ids[1], ids[2:]
        start = int(torch.eq(letter, empty).int().cumprod(0).sum())
        free = max(room, 1)
        if inside:
            n = int(letter[start:].eq(empty[start]).int().argmax())  # tokens of "X"
            ids = torch.cat([ids[:, :start], ids[:, start + n :], ids[:, ids.shape[1] - n :]], 1)
            free = max(room, 1 + n)
        is_end = ids[:, start:] == empty[start]
        counts = torch.where(is_end.any(1), is_end.int().argmax(1), ids.shape[1] - start)
        for text, count in zip(texts, counts.tolist(), strict=True):
            if count == 0:
                raise ValueError(f"{text!r} has no tokens in this tokenizer's vocabulary. Use readable words.")
            if start + count + free >= ids.shape[1]:
                raise ValueError(
                    f"{text!r} is too long: its tokens, {room} context tokens and the end of text do not fit in the "
                    f"text tower's {ids.shape[1]} positions. Shorten it" + (" or lower n_ctx." if room else ".")
                )
        return cls(ids, start, counts)


def _check_vocabulary(ids: object, tower: TextTower, n_texts: int) -> None:
    known = tower.embedding.num_embeddings if tower.embedding is not None else 1 << 62
    length = tower.context_length
    if tower.any_length and isinstance(ids, Tensor) and ids.ndim == 2:
        length = min(ids.shape[1], length)
    expected = (n_texts, length)
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
