"""The start of the context tokens: random, from words, or from a context that is already there."""

import torch
from torch import Tensor, nn

from prograd_fast.clip.text_tower import TextTower
from prograd_fast.clip.tokens import TokenizedTexts, Tokenizer, clean_words


def initial_context(
    tokenizer: Tokenizer, tower: TextTower, n_ctx: int | None, ctx_init: str | Tensor | None, n_classes: int | None
) -> tuple[nn.Parameter, Tensor]:
    """The context parameter, and the token ids that keep its place in a prompt.

    Args:
        tokenizer: texts to token ids.
        tower: the text tower that will read the prompts.
        n_ctx: number M of context tokens. None: as many as `ctx_init` has.
        ctx_init: words, None for N(0, 0.02^2), or a tensor; see `PromptedCLIP`.
        n_classes: C for class-specific contexts, None for a shared one.

    Returns:
        The context, (M, d) or (C, M, d), float32 or wider, on the tower's device; and (M,) token ids: at the end those
        of the words, before them "X" as in CoOp. The embeddings of these ids do not enter a prompt.

    Raises:
        ValueError: `n_ctx` and `ctx_init` fit neither each other nor the tower.
    """
    if n_ctx is not None and (not isinstance(n_ctx, int) or isinstance(n_ctx, bool) or n_ctx < 1):
        raise ValueError(f"n_ctx: expected a number of context tokens, 1 or more, or None, got {n_ctx!r}.")
    if n_ctx is not None and n_ctx >= tower.context_length:  # before there is memory for them
        raise ValueError(
            f"n_ctx: {n_ctx} context tokens and a class name do not fit in the text tower's {tower.context_length} "
            "positions; lower n_ctx."
        )
    filler, words = _word_ids(tokenizer, tower, "X")[:1], torch.empty(0, dtype=torch.int64)
    if isinstance(ctx_init, Tensor):
        given = _checked(ctx_init, n_ctx, n_classes, tower.width)
        return given, filler.expand(given.shape[-2])
    if isinstance(ctx_init, str):
        words = _word_ids(tokenizer, tower, ctx_init)
        n_ctx = len(words) if n_ctx is None else n_ctx
        if n_ctx < len(words):
            raise ValueError(
                f"n_ctx: expected at least the {len(words)} tokens of ctx_init {ctx_init!r}, got {n_ctx}. Raise n_ctx, "
                "or pass None for as many as the words have."
            )
    if n_ctx is None:
        raise ValueError("n_ctx: expected a number of context tokens, got None without words in ctx_init.")

    leading = () if n_classes is None else (n_classes,)
    # Drawn on the CPU: the same seed gives the same start on any device.
    ctx = torch.zeros(*leading, n_ctx, tower.width, dtype=torch.promote_types(tower.dtype, torch.float32))
    if len(words):
        ctx[..., n_ctx - len(words) :, :] = tower.embed(words).to(ctx)
    else:
        nn.init.normal_(ctx, std=0.02)
    return nn.Parameter(ctx.to(tower.device)), torch.cat([filler.expand(n_ctx - len(words)), words])


def _word_ids(tokenizer: Tokenizer, tower: TextTower, words: str) -> Tensor:
    words = clean_words(words)
    if "{" in words:
        raise ValueError(f"ctx_init: expected only the words before the name, such as 'a photo of a', got {words!r}.")
    tokens = TokenizedTexts.of(tokenizer, tower, [words])
    return tokens.ids[0, tokens.start : tokens.start + int(tokens.counts)]


def _checked(ctx: Tensor, n_ctx: int | None, n_classes: int | None, width: int) -> nn.Parameter:
    leading = () if n_classes is None else (n_classes,)
    rows = ctx.shape[-2] if ctx.ndim > 1 else 0
    if ctx.shape != (*leading, rows, width) or n_ctx not in (None, rows) or rows == 0 or not ctx.is_floating_point():
        expected = ", ".join(map(str, (*leading, n_ctx or "any number of tokens", width)))
        whose = "shared by all classes" if n_classes is None else f"specific to {n_classes} classes"
        raise ValueError(
            f"ctx_init: expected a floating-point context of shape ({expected}), {whose}, for this text tower, got "
            f"{ctx.dtype} of shape {tuple(ctx.shape)}. Use the model that it was tuned for, and n_ctx=None."
        )
    return ctx if isinstance(ctx, nn.Parameter) else nn.Parameter(ctx.detach().clone())
