"""Prompt encoding as the CoOp and ProGrad authors write it: every prompt at the tower's full length, class by class."""

from typing import Any

import torch
from torch import Tensor, nn


def assemble_prompts(
    token_embeddings: Tensor, context: Tensor, name_lengths: list[int], class_token_position: str = "end"
) -> Tensor:
    """Put the context into the token embeddings of "X ... X name." (`KaiyangZhou/CoOp:trainers/coop.py`).

        end     [SOS | ctx 1..M | name . EOT pad]
        middle  [SOS | ctx 1..floor(M/2) | name | ctx rest | . EOT pad]
        front   [SOS | name | ctx 1..M | . EOT pad]

    Args:
        token_embeddings: (C, 77, d) embeddings of the tokenised prompts, with M placeholders after SOS.
        context: (M, d), or (C, M, d) for class-specific ones.
        name_lengths: number of tokens of each class name, without the full stop.
        class_token_position: "end", "middle" or "front".

    Returns:
        (C, 77, d) prompts.
    """
    n_ctx = context.shape[-2]
    before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[class_token_position]
    prompts = []
    for c, length in enumerate(name_lengths):
        ctx = context if context.ndim == 2 else context[c]
        sos, suffix = token_embeddings[c, :1], token_embeddings[c, 1 + n_ctx :]
        prompts.append(torch.cat([sos, ctx[:before], suffix[:length], ctx[before:], suffix[length:]]))
    return torch.stack(prompts)


def encode_prompts(model: nn.Module, prompts: Tensor, token_ids: Tensor) -> Tensor:
    """Text features of prompts given as embeddings: positions, causal tower, final norm, EOT row, projection.

    `TextEncoder.forward` of `KaiyangZhou/CoOp:trainers/coop.py`, for a tower with OpenAI's vocabulary, where the end of
    text has the largest id.

    Args:
        model: an open_clip `CLIP` or `CustomTextCLIP` with a causal text tower; any float dtype.
        prompts: (C, 77, d) token embeddings without positions.
        token_ids: (C, 77) ids of the tokenised prompts.

    Returns:
        (C, D) features, not normalised.
    """
    text: Any = getattr(model, "text", model)
    x = prompts + text.positional_embedding
    x = text.transformer(x, attn_mask=text.attn_mask)
    x = text.ln_final(x)
    return x[torch.arange(len(x)), token_ids.argmax(dim=-1)] @ text.text_projection
