"""Zero-shot CLIP, the teacher whose knowledge the prompts should keep."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from prograd_fast.clip.class_parallel import ClassShare, check_class_group
from prograd_fast.clip.prompt_encoder import PromptEncoder
from prograd_fast.clip.prompted import cosine_logits
from prograd_fast.clip.text_tower import TextTower
from prograd_fast.clip.tokens import TokenizedTexts, Tokenizer, clean_words, readable_class_names, warn_of_equal_names

_PROMPTS_AT_ONCE = 256  # bounds the memory of a thousand classes with many templates

KeptTexts = dict[tuple[str, nn.Module, tuple[str, ...], tuple[str, ...]], Tensor]
_kept: ContextVar[KeptTexts | None] = ContextVar("_kept", default=None)


@contextmanager
def keep_texts(kept: KeptTexts) -> Iterator[None]:
    """Compute the features of hand-written prompts once for each model, class list and templates, for many runs.

    Within the block no weight of a text tower may change: nobody looks.

    Args:
        kept: Holds them, and the models; a later block that is given it goes on with what is there.
    """
    token = _kept.set(kept)
    try:
        yield
    finally:
        _kept.reset(token)


def _once(
    kind: str, model: nn.Module, names: Sequence[str], templates: Sequence[str], new: Callable[[], Tensor]
) -> Tensor:
    """Call `new`, within `keep_texts` once. The tensor then belongs to many runs: nobody writes to it."""
    kept = _kept.get()
    if kept is None:
        return new()
    key = kind, model, tuple(names), tuple(templates)
    if key not in kept:
        kept[key] = new()
    return kept[key]


class ZeroShotTeacher(nn.Module):
    """Logits of zero-shot CLIP from hand-written prompts, as one (C, D) matrix.

    The features are computed once, here. At every step the teacher's logits then cost one matrix product with the image
    features that the student has already computed: no second image forward, no second model in memory.

    With several templates, a class's feature is the mean of its unit-length features over the templates, normalised
    again (`ZeroshotCLIP2` in `KaiyangZhou/CoOp`). Nothing is trainable, and nothing is in `state_dict()`.

    Args:
        model: an open_clip model (or one of its form, see `TextTower`); not kept.
        tokenizer: its tokenizer.
        class_names: C names, cleaned by `clean_words`, as the templates are.
        templates: one template such as "a photo of a {}.", or several.
        class_group: ranks of `torch.distributed` that share the classes, here and at once: each encodes its part, and
            all get the features of all. None (default): every rank encodes all classes.

    Attributes:
        class_features: (C, D) unit rows.
        class_names: readable names, tuple of C strings.

    Raises:
        TypeError: `class_names` or `templates` are not strings; `class_group` is no group that this rank is in.
        ValueError: empty names, no template, a template without exactly one "{}", a prompt too long; on every rank:
            those of `class_group` do not agree on the classes or the templates.
    """

    __call__: Callable[..., Tensor]

    class_features: Tensor
    logit_scale: Tensor
    logit_bias: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        class_names: Sequence[str],
        templates: str | Sequence[str],
        class_group: "dist.ProcessGroup | None" = None,
    ) -> None:
        super().__init__()
        self.class_names = readable_class_names(class_names)
        templates = _templates(templates)
        if class_group is not None:
            check_class_group(class_group, {"class_names": self.class_names, "templates": tuple(templates)})
        clip: Any = model

        def encode() -> Tensor:
            tower = TextTower(model)
            features = [_text_features(tower, tokenizer, self.class_names, t, class_group) for t in templates]
            return mean_of_units(torch.stack(features))

        known = class_group is None  # ranks that share the classes have to encode them together
        features = _once("mean", model, self.class_names, templates, encode) if known else encode()
        self.register_buffer("class_features", features, persistent=False)
        bias = getattr(clip, "logit_bias", None)
        self.register_buffer("logit_scale", clip.logit_scale.detach().exp(), persistent=False)
        self.register_buffer("logit_bias", None if bias is None else bias.detach().clone(), persistent=False)

    def logits(self, image_features: Tensor) -> Tensor:
        """Zero-shot logits (B, C) of unit-length image features (B, D), without graph."""
        return cosine_logits(image_features.detach(), self.class_features, self.logit_scale, self.logit_bias)

    def forward(self, image_features: Tensor) -> Tensor:
        """Same as `logits`."""
        return self.logits(image_features)


def template_features(
    model: nn.Module, tokenizer: Tokenizer, class_names: Sequence[str], templates: str | Sequence[str]
) -> Tensor:
    """The text tower's output for each class in each template: (L, C, D), not normalised, without graph.

    `mean_of_units` makes the class features of zero-shot CLIP of them.

    Args:
        model: as for `ZeroShotTeacher`.
        tokenizer: its tokenizer.
        class_names: C names.
        templates: one, or L of them.

    Raises:
        TypeError, ValueError: as `ZeroShotTeacher`.
    """
    names, several = readable_class_names(class_names), _templates(templates)

    def encode() -> Tensor:
        tower = TextTower(model)
        return torch.stack([_text_features(tower, tokenizer, names, template, None) for template in several])

    return _once("each", model, names, several, encode)


def mean_of_units(features: Tensor) -> Tensor:
    """(C, D) unit rows of (L, C, D) features: the mean of the L unit rows of a class, normalised again."""
    return F.normalize(F.normalize(features, dim=-1).mean(0), dim=-1)


def _templates(templates: str | Sequence[str]) -> list[str]:
    """The templates as a list; TypeError or ValueError if they are none."""
    templates = [templates] if isinstance(templates, str) else list(templates)
    if not templates:
        raise ValueError("templates: expected at least one, such as 'a photo of a {}.', got none.")
    for template in templates:
        if not isinstance(template, str):
            raise TypeError(f"templates: expected strings, got {template!r} ({type(template).__name__}).")
        if clean_words(template).count("{}") != 1:
            raise ValueError(f"templates: expected exactly one {{}} for the class name, got {template!r}.")
    return templates


@torch.no_grad()
def _text_features(
    tower: TextTower,
    tokenizer: Tokenizer,
    class_names: Sequence[str],
    template: str,
    class_group: "dist.ProcessGroup | None",
) -> Tensor:
    template = clean_words(template)
    ids = TokenizedTexts.of(tokenizer, tower, [template.replace("{}", name) for name in class_names]).ids
    warn_of_equal_names(class_names, ids)
    ids = ids[:, : tower.length(ids)]
    if class_group is None:
        return _features(tower, ids)
    packed = tower.unpackable_reason is None
    share = ClassShare(class_group, tower.ends(ids) + 1 if packed else torch.ones(len(ids), dtype=torch.int64))
    return share.gather(_features(tower, ids[share.encoded])[None])[0]


def _features(tower: TextTower, ids: Tensor) -> Tensor:
    parts = torch.split(ids, _PROMPTS_AT_ONCE if tower.unpackable_reason is not None else len(ids))
    if tower.closed_reason is not None:
        return torch.cat([tower.encode_ids(part) for part in parts])
    no_context = ids.new_zeros(1, 0, tower.width, dtype=tower.dtype, device=tower.device)
    encoders = [PromptEncoder(tower, part, part[:, :0], class_specific=False) for part in parts]
    return torch.cat([encoder(no_context)[0] for encoder in encoders])
