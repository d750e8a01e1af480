"""A CLIP model whose class prompts start with learned context tokens (CoOp's prompt learner)."""

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from prograd_fast.clip.class_parallel import check_class_group, take_from_first
from prograd_fast.clip.context import initial_context
from prograd_fast.clip.layout import ClassTokenPosition, PromptLayout
from prograd_fast.clip.prompt_encoder import PromptEncoder
from prograd_fast.clip.text_tower import TextTower
from prograd_fast.clip.tokens import Tokenizer, readable_class_names


def cosine_logits(image_features: Tensor, class_features: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Logits scale * x @ W.T + bias of unit rows x (..., B, D), W (..., C, D); few models have a bias (SigLIP)."""
    logits = scale * image_features @ class_features.mT
    return logits if bias is None else logits + bias


class PromptLearner(nn.Module):
    """The trainable part of a prompted model. It holds nothing that depends on the class names, so it serves any.

    Args:
        ctx: context tokens, (M, d) shared by all classes or (C, M, d).
    """

    def __init__(self, ctx: nn.Parameter) -> None:
        super().__init__()
        self.ctx = ctx


class PromptedCLIP(nn.Module):
    """A frozen CLIP model that classifies images with prompts "[context] class name."; only the context is trainable.

    Source: CoOp (arXiv:2109.01134, `KaiyangZhou/CoOp:trainers/coop.py`) and, for the start from words, ProGrad
    (arXiv:2205.14865, `BeierZhu/Prompt-align:ProGrad.public/trainers/prograd.py`). Underscores in names become spaces
    (`prograd_fast.clip.tokens.clean_words`). Names that are the same words, as in ImageNet's list, get equal scores.

    As in CoOp, the model that is passed in is put in evaluation mode and its weights no longer require grad; it stays
    in evaluation mode under `train()`. Adapters that are put into its towers afterwards, such as LoRA's, are trained by
    whoever has them in an optimizer. The context is float32, or float64 in a float64 model, whatever the precision of
    the model: small updates get lost in half precision.

    How the context starts:

    * `ctx_init=None`: N(0, 0.02^2) from torch's global CPU generator (same seed, same start on any device).
    * Words: their token embeddings fill the last rows, rows before them are zero, as in ProGrad. ProGrad counts words
      where this counts tokens; they differ for words with a comma ("a type of pet, a photo of a": 8 words, 9 tokens),
      where ProGrad keeps the last token out of the context. With `class_specific` every class starts from the words
      (ProGrad falls back to a shared context there, without a message).
    * A tensor, (M, d) or (C, M, d): an `nn.Parameter`, such as another net's `prompt.ctx`, is shared with its owner,
      any other tensor is copied.

    Args:
        model: an open_clip model, or one that has what `TextTower` asks for, a parameter `logit_scale` (a logarithm)
            and, for images, `encode_image`; `logit_bias` is added where there is one.
        tokenizer: its tokenizer.
        class_names: C names.
        n_ctx: number M of context tokens. None: as many as `ctx_init` has.
        ctx_init: words that stand before the name, None for a random start, or a tensor.
        class_specific: one context per class, (C, M, d), instead of a shared one, (M, d).
        class_token_position: where the name stands, seen from the context: "end", "middle" or "front".
        max_memory: bytes that the text tower's activations may take. Where they would take more, the classes are
            computed in chunks, twice: the same features and gradients, but for rounding. None (default): no limit.
        class_group: ranks of `torch.distributed` that share the classes: each encodes its part, and all get the
            features of all. They see the same batches, and all call `class_features` and the backward. Then the
            gradient of the context is that of all classes on each of them. The first rank's context is copied to the
            others. The optimizer's `process_group` has the ranks that see different batches, such as the other
            dimension of a `DeviceMesh`; of equal gradients it takes the mean, which changes nothing. None (default):
            every rank encodes all classes.

    Attributes:
        prompt: the `PromptLearner`; `prompt.ctx` is the one trainable tensor.
        class_names: readable names, tuple of C strings.
        n_ctx: number M of context tokens.

    Raises:
        TypeError: the model's text tower cannot take context tokens; `class_names` are not strings; `class_group` is
            no group that this rank is in.
        ValueError: empty names, a name too long; `n_ctx` or `ctx_init` that fit neither each other nor the
            model; on every rank: those of `class_group` do not agree on the classes or the context.

    Example:
        >>> import torch, prograd_fast as pf
        >>> model, tokenizer, preprocess = pf.clip.load_emoji_lite()
        >>> net = pf.clip.PromptedCLIP(model, tokenizer, ["cat", "dog"], n_ctx=4)
        >>> net(torch.zeros(1, 3, 112, 112)).shape, [name for name, _ in net.prompt.named_parameters()]
        (torch.Size([1, 2]), ['ctx'])
    """

    model: Any  # torch declares every attribute of a module as Tensor or Module

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        class_names: Sequence[str],
        n_ctx: int | None = 16,
        ctx_init: str | Tensor | None = None,
        class_specific: bool = False,
        class_token_position: ClassTokenPosition = "end",
        max_memory: float | None = None,
        class_group: "dist.ProcessGroup | None" = None,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.class_names = readable_class_names(class_names)
        self.class_specific = class_specific
        self.class_token_position: ClassTokenPosition = class_token_position
        self.tower = tower = TextTower(model)
        if tower.closed_reason is not None:
            raise TypeError(
                f"model: context tokens cannot be put between the words of {type(model).__name__}: "
                f"{tower.closed_reason}. Use a method without a context, such as zero-shot or linear-probe, or another "
                "model, such as ViT-B-32."
            )
        n_classes = len(self.class_names) if class_specific else None
        ctx, context_ids = initial_context(tokenizer, tower, n_ctx, ctx_init, n_classes)
        self.n_ctx = len(context_ids)
        layout = PromptLayout.of(tokenizer, tower, self.class_names, context_ids, class_token_position)
        self.prompt = PromptLearner(ctx)
        if class_group is not None:
            facts = {
                "class_names": self.class_names,
                "class_token_position": class_token_position,
                "ctx": f"{ctx.dtype} of shape {tuple(ctx.shape)}",
                "model": f"{type(model).__name__} with a text tower of {tower.dtype}, {tower.width} wide",
            }
            check_class_group(class_group, facts)
            take_from_first(class_group, ctx)
        self.encoder = PromptEncoder(
            tower, layout.token_ids, layout.context_positions, class_specific, max_memory, class_group
        )
        self.model = model.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "PromptedCLIP":
        """Set the mode of the prompt; the frozen model stays in evaluation mode (batch norm keeps its statistics)."""
        super().train(mode)
        self.model.eval()
        return self

    def with_classes(
        self,
        class_names: Sequence[str],
        class_group: "dist.ProcessGroup | None" = None,
        class_token_position: ClassTokenPosition | None = None,
    ) -> "PromptedCLIP":
        """A net of the same model and the same `prompt.ctx` for other class names, such as base-to-new's new ones.

        Args:
            class_names: the names.
            class_group: ranks that share them. None (default): this rank encodes all of them, whoever shares those of
                this net.
            class_token_position: where the names stand. None (default): as in this net.

        Raises:
            ValueError: the context is class-specific and the names are not those it was trained for.
        """
        if self.class_specific and readable_class_names(class_names) != self.class_names:
            raise ValueError(
                f"class_names: expected {', '.join(self.class_names)}, to which this class-specific context belongs, "
                f"got {', '.join(class_names)}. Use class_specific=False for a context that serves any names."
            )
        trained = [p for p in self.model.parameters() if p.requires_grad]  # LoRA's, that came after the freezing
        net = PromptedCLIP(
            self.model,
            self.tokenizer,
            class_names,
            n_ctx=None,
            ctx_init=self.prompt.ctx,
            class_specific=self.class_specific,
            class_token_position=class_token_position or self.class_token_position,
            max_memory=self.encoder.max_memory,
            class_group=class_group,
        )
        for p in trained:
            p.requires_grad_(True)
        return net

    def class_features(
        self,
        context: Tensor | None = None,
        deep: Tensor | None = None,
        unit: bool = True,
        before: int | None = None,
    ) -> Tensor:
        """Unit-length text features of the prompts, differentiable in the context.

        Args:
            context: what stands before the names instead of `prompt.ctx`. Of its shape, or with a leading size G for
                several at once, such as one for each image (CoCoOp) or each sample (variational prompts).
            deep: (J, M, d) deep prompts (PromptSRC, MaPLe): before block j = 1 ... J of the tower (the first is 0) the
                rows of the context are replaced by deep[j - 1]. Only for shared contexts at "end".
            unit: whether the features are normalised (default: True).
            before: None (default), or a block, 1 or later: then `deep` is (C, M, d), tokens of each class (TCP), and
                before this block alone the rows of the context in the prompt of class c are replaced by deep[c].

        Returns:
            (C, D), or (G, C, D) for G contexts.

        Raises:
            ValueError: a shape that does not fit, or deep prompts where they have no place.
        """
        self._check(context, deep, before)
        context = self.prompt.ctx if context is None else context
        single = context.ndim == self.prompt.ctx.ndim
        features = self.encoder(context.unsqueeze(0) if single else context, deep, before, unit=unit)
        return features.squeeze(0) if single else features

    def _check(self, context: Tensor | None, deep: Tensor | None, before: int | None) -> None:
        shape = tuple(self.prompt.ctx.shape)
        fits = context is None or (context.shape[-len(shape) :] == shape and context.ndim <= len(shape) + 1)
        if context is not None and not (fits and len(context)):
            own = ", ".join(map(str, shape))
            raise ValueError(f"context: expected shape ({own}) or (G, {own}), got {tuple(context.shape)}.")
        if deep is None:
            if before is not None:
                raise ValueError(
                    f"deep: expected class tokens of shape {(len(self.class_names), *shape)} for before={before}, got "
                    "None. Without class tokens leave before out."
                )
            return
        if self.tower.full_length_reason is not None:
            raise ValueError(
                f"deep: expected a causal tower that pools at end of text, but {self.tower.full_length_reason}. Use a "
                "method without deep prompts, or another model, such as ViT-B-32."
            )
        if self.class_specific or self.class_token_position != "end":
            raise ValueError(
                "deep: expected a shared context at 'end', whose rows deep prompts can replace, got "
                f"class_specific={self.class_specific} and class_token_position={self.class_token_position!r}."
            )
        if before is not None:
            expected = (len(self.class_names), *shape)
            if deep.shape != expected or not 1 <= before < self.tower.n_layers:
                raise ValueError(
                    f"deep: expected class tokens of shape {expected} before a block from 1 to "
                    f"{self.tower.n_layers - 1}, got {tuple(deep.shape)} before block {before}. In a text tower of a "
                    "single block they have no place."
                )
        elif deep.ndim != 3 or deep.shape[1:] != shape[-2:] or len(deep) >= self.tower.n_layers:
            raise ValueError(
                f"deep: expected shape (J, {shape[0]}, {shape[1]}) with J below the tower's {self.tower.n_layers} "
                f"layers, got {tuple(deep.shape)}."
            )

    def image_features(self, images: Tensor) -> Tensor:
        """Unit-length features (B, D) of preprocessed images (B, 3, H, W).

        They have no graph, since the image tower is frozen; unless some of its parameters were made to require grad
        afterwards, such as LoRA's. The images themselves get no gradient.
        """
        return F.normalize(self.model.encode_image(images.detach()), dim=-1)

    def logits(self, image_features: Tensor, class_features: Tensor | None = None) -> Tensor:
        """Scaled cosine similarities, exp(logit_scale) * x @ W.T, plus the model's `logit_bias` where it has one.

        Args:
            image_features: (B, D) unit rows.
            class_features: (C, D) from `class_features()`, to score many batches after one pass through the text
                tower; None computes them.

        Returns:
            (B, C) logits.
        """
        features = self.class_features() if class_features is None else class_features
        return cosine_logits(
            image_features, features, self.model.logit_scale.exp(), getattr(self.model, "logit_bias", None)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of preprocessed images (B, 3, H, W)."""
        return self.logits(self.image_features(images))
