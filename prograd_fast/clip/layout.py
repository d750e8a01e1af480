"""Prompt layout: the token or the context row at each position of each class's prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from prograd_fast.clip.text_tower import TextTower
from prograd_fast.clip.tokens import TokenizedTexts, Tokenizer, warn_of_equal_names

ClassTokenPosition = Literal["end", "middle", "front"]


@dataclass(frozen=True)
class PromptLayout:
    """The prompts of C classes with M context tokens, position by position.

    Attributes:
        token_ids: (C, L) int64 ids in their final order; context positions hold the ids they stand for.
        context_positions: (C, M) int64, position of each context token in its class's prompt.
    """

    token_ids: Tensor
    context_positions: Tensor

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        tower: TextTower,
        class_names: Sequence[str],
        context_ids: Tensor,
        class_token_position: ClassTokenPosition = "end",
    ) -> "PromptLayout":
        """Lay out "context name ." for each class, cut to the positions that `tower` needs.

            end     [SOS | ctx 1..M | name . EOT]
            middle  [SOS | ctx 1..floor(M/2) | name | ctx rest | . EOT]
            front   [SOS | name | ctx 1..M | . EOT]

        as in CoOp (`KaiyangZhou/CoOp:trainers/coop.py`); a name is as long as its tokens without the full stop. There,
        `front` and `middle` are put together by a loop over classes in every step, here once by index.

        Args:
            tokenizer: texts to token ids.
            tower: the text tower that will read the prompts.
            class_names: readable names, see `readable_class_names`.
            context_ids: (M,) ids that stand for the context.
            class_token_position: where the name stands, seen from the context.

        Raises:
            ValueError: unknown position; a name without tokens or too long.
        """
        if class_token_position not in get_args(ClassTokenPosition):
            raise ValueError(
                f"class_token_position: expected 'end', 'middle' or 'front', got {class_token_position!r}."
            )
        n_ctx = len(context_ids)
        texts = TokenizedTexts.of(tokenizer, tower, [f"{name}." for name in class_names], n_ctx, inside=True)
        # The full stop can merge with a name's own last sign ("etc." + "."): CoOp, too, counts the name alone. It must
        # not count more than there is before the end of text, whatever the vocabulary.
        names = TokenizedTexts.of(tokenizer, tower, class_names, inside=True)
        warn_of_equal_names(class_names, names.ids)
        name_lengths = torch.minimum(names.counts, texts.counts)

        before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[class_token_position]
        row = torch.arange(n_ctx)
        positions = texts.start + row + torch.where(row >= before, name_lengths[:, None], 0)
        is_text = torch.ones_like(texts.ids, dtype=torch.bool).scatter_(1, positions, False)
        token_ids = torch.empty_like(texts.ids)
        token_ids[is_text] = texts.ids[:, : texts.ids.shape[1] - n_ctx].flatten()
        token_ids.scatter_(1, positions, context_ids.expand_as(positions))
        return cls(token_ids[:, : tower.length(token_ids)], positions)
