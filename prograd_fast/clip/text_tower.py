"""The frozen text tower of an open_clip model, from token embeddings to class features."""

import functools
import logging
from typing import Any

import torch
from torch import Tensor, nn

from prograd_fast.clip.embedding import closed_reason, embedding_of, not_traced, replacing_embeddings
from prograd_fast.clip.packed.compatibility import unlike_clip

_LONGEST = 1 << 15  # tokens, of a tower that names no limit

_log = logging.getLogger(__name__)


@functools.cache
def _say_once(message: str) -> None:  # a net, its teacher and every other set of classes look at the same tower
    _log.warning(message)


class TextTower:
    """Runs the text tower of a CLIP model on token embeddings instead of token ids.

    A causal tower that pools at the end-of-text token (OpenAI CLIP and most open_clip models) never looks behind that
    token, so sequences may be cut after the longest one: the same features for less work. Any other tower (SigLIP,
    `no_causal_mask`, CoCa's appended CLS token, padding masks, OpenAI's own `clip` package, Hugging Face's towers such
    as BERT and RoBERTa) takes the plain way: the model's own `encode_text` at full length, with only the output of its
    token embedding replaced. `full_length_reason` says why, and so does a line in the log.

    The tower reads its weights from the model at every call; it holds none itself and follows `model.to(...)`.

    Args:
        model: an open_clip `CLIP`, `CustomTextCLIP` or `CoCa`; or any module with `encode_text(token_ids)`, (N, L) to
            (N, D), and a `torch.nn.Embedding` named `token_embedding` in the model or in the module `model.text`, which
            `encode_text` calls; or one with one of Hugging Face's models in `model.text`. Nothing else is needed. A
            `context_length` beside the embedding says which length L must be.

    Attributes:
        model: the model.
        text: the part of it that holds the text tower.
        embedding: its token embedding, None if there is none within reach.
        closed_reason: why no embeddings can be put into the tower, or None if they can; it still encodes token ids.
        context_length: number of token ids per text, at most if `any_length`.
        any_length: whether the tokenizer chooses that number.
        full_length_reason: why sequences are not cut, or None if they are.
        unpackable_reason: why prompts cannot share the rows that they have in common (`PromptEncoder`), or None.
    """

    model: Any  # Any: torch declares every attribute of a module as Tensor or Module
    text: Any

    def __init__(self, model: nn.Module) -> None:
        inner = getattr(model, "text", None)
        self.model = model
        self.text = inner if isinstance(inner, nn.Module) else model
        self.embedding = embedding_of(self.text)
        length: int | None = getattr(self.text, "context_length", None)
        self.any_length = not length or getattr(self.text, "token_embedding", None) is None
        self.context_length: int = length or _LONGEST
        self.closed_reason = closed_reason(model, self.embedding)
        self._pool_type = getattr(self.text, "pool_type", getattr(self.text, "text_pool_type", None))
        self._eos_id: int = getattr(self.text, "eos_id", getattr(self.text, "text_eos_id", 0))
        self.full_length_reason = self._full_length_reason()
        if self.full_length_reason is not None:
            name = type(model).__name__
            _say_once(f"{name}: prompts are not cut but take all positions of the tower: {self.full_length_reason}")
        self.unpackable_reason = self.full_length_reason or unlike_clip(self.text)
        if self.full_length_reason is None and self.unpackable_reason is not None:
            name = type(model).__name__
            _say_once(
                f"{name}: class prompts do not share their rows but are computed one by one: {self.unpackable_reason}"
            )

    def _full_length_reason(self) -> str | None:
        mask = getattr(self.text, "attn_mask", None)
        if mask is None:  # open_clip masks padding only where there is no causal mask: padding masks are covered, too
            return "no causal attention mask is found in the tower"
        if not torch.equal(mask, torch.full_like(mask, float("-inf")).triu(1)):
            return "the tower's attention mask is not the causal one"
        if getattr(self.text, "cls_emb", None) is not None:
            return "the tower appends a CLS token"
        if self._pool_type not in ("argmax", "eos"):
            return f"the tower pools at {self._pool_type!r}, not at the end-of-text token"
        parts = ("transformer", "positional_embedding", "ln_final", "text_projection")
        missing = [name for name in parts if not hasattr(self.text, name)]
        if missing or not hasattr(self.text.transformer, "resblocks"):
            return f"the tower has no {missing[0] if missing else 'transformer.resblocks'}, as open_clip's have"
        return None

    @property
    def width(self) -> int:
        """Width d of a token embedding."""
        return self.embedding.embedding_dim

    @property
    def n_layers(self) -> int:
        """Number of transformer blocks."""
        return len(self.text.transformer.resblocks)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which open_clip runs the tower (that of its linear layers); else that of the embedding."""
        cast_dtype = getattr(getattr(self.text, "transformer", None), "get_cast_dtype", None)
        return self.embedding.weight.dtype if cast_dtype is None else cast_dtype()

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of matrix products: `dtype`, or autocast's for a float32 tower."""
        kind = self.device.type
        autocast = self.dtype == torch.float32 and torch.is_autocast_enabled(kind)
        return torch.get_autocast_dtype(kind) if autocast else self.dtype

    @property
    def device(self) -> torch.device:
        """The device of the tower's weights."""
        return self.embedding.weight.device

    def length(self, token_ids: Tensor) -> int:
        """The number of leading positions of `token_ids` (N, context_length) that the features depend on."""
        if self.full_length_reason is not None:
            return self.context_length
        return int(self.ends(token_ids).max()) + 1

    @torch.no_grad()
    def embed(self, token_ids: Tensor) -> Tensor:
        """Token embeddings, without positions: (N, L) int64 to (N, L, d), no graph, on the tower's device."""
        return self.embedding(token_ids.to(self.device)).to(self.dtype)

    def encode_ids(self, token_ids: Tensor) -> Tensor:
        """Text features of (N, L) token ids by the model's own way, not normalised; for towers that are closed, too."""
        return self.model.encode_text(token_ids.to(next(self.model.parameters()).device))

    def encode(
        self,
        embeddings: Tensor,
        token_ids: Tensor,
        deep: Tensor | None = None,
        before: int | None = None,
        early: int = 0,
    ) -> Tensor:
        """Text features as `encode_text` gives them, not normalised.

        Args:
            embeddings: (N, L, d) token embeddings without positions, L = `length(token_ids)` or more.
            token_ids: (N, L) int64; tells where the end of text is, and where padding is in towers that mask it. Ids of
                positions whose embedding was replaced (context tokens) may be any but end of text and padding.
            deep: (J, M, d) replaces positions 1 ... M before block j = 1 ... J.
            before: a block: then `deep` is (N, M, d), and replaces them in each text before this block alone.
            early: how many positions before the end of text the features are read.

        Returns:
            (N, D) features, differentiable in `embeddings` and `deep`.

        Raises:
            ValueError: `deep` or `early` for a tower whose blocks cannot be reached one by one.
        """
        if self.full_length_reason is not None:
            if deep is not None or early:
                name = "early" if deep is None else "deep"
                raise ValueError(
                    f"{name}: expected a causal tower that pools at end of text: {self.full_length_reason}."
                )
            return self._encode_text(embeddings, token_ids)
        text, length = self.text, embeddings.shape[1]
        x = embeddings.to(self.dtype) + text.positional_embedding[:length].to(self.dtype)
        mask = text.attn_mask[:length, :length]
        x = text.transformer(x, attn_mask=mask) if deep is None else self._with_deep_prompts(x, mask, deep, before)
        # The final norm works row by row, so only the pooled row needs it.
        x = text.ln_final(x[torch.arange(len(x), device=x.device), self.ends(token_ids) - early])
        projection = text.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Linear) else x @ projection

    def _with_deep_prompts(self, x: Tensor, mask: Tensor, deep: Tensor, before: int | None) -> Tensor:
        for i, block in enumerate(self.text.transformer.resblocks):
            if 1 <= i <= len(deep) if before is None else i == before:
                rows = (deep[i - 1] if before is None else deep).to(x.dtype).expand(len(x), -1, -1)
                x = torch.cat([x[:, :1], rows, x[:, 1 + rows.shape[1] :]], 1)
            x = block(x, attn_mask=mask)
        return x

    @not_traced
    def _encode_text(self, embeddings: Tensor, token_ids: Tensor) -> Tensor:
        with replacing_embeddings(self.embedding, embeddings):
            return self.model.encode_text(token_ids)

    def ends(self, token_ids: Tensor) -> Tensor:
        """Index of the end-of-text token by the tower's own rule, (N,) int64."""
        if self._pool_type == "eos":
            return token_ids.eq(self._eos_id).int().argmax(dim=-1)
        return token_ids.argmax(dim=-1)  # OpenAI's vocabulary: end of text has the largest id
