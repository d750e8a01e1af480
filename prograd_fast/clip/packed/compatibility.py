"""The packed tower stands in for some text towers only: the tests that tell which, and when."""

from collections.abc import Sequence
from itertools import chain, count
from operator import attrgetter, is_, itemgetter
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

_NORMS = (
    "torch.nn.modules.normalization.LayerNorm",
    "open_clip.transformer.LayerNorm",
    "open_clip.transformer.LayerNormFp32",
)
QUICK_GELU = "open_clip.transformer.QuickGELU"
_GELUS = ("torch.nn.modules.activation.GELU", QUICK_GELU)
LAYER_SCALE = "open_clip.transformer.LayerScale"
_SCALES = ("torch.nn.modules.linear.Identity", LAYER_SCALE)


def type_name(module: Any) -> str:
    """The type of a module by name: the core does not need open_clip."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def unlike_clip(text: Any) -> str | None:
    """Return the reason why the tower's blocks are not those of CLIP, or None if they are."""
    blocks = list(text.transformer.resblocks)
    for block in blocks:
        if type_name(block) != "open_clip.transformer.ResidualAttentionBlock" or hasattr(block, "ln_1_kv"):
            return f"its blocks are of type {type(block).__name__}, not open_clip's ResidualAttentionBlock"
        attention = block.attn
        plain = type(attention) is nn.MultiheadAttention and attention.in_proj_weight is not None
        if not plain or attention.bias_k is not None or attention.add_zero_attn:
            return "its attention is not a plain torch.nn.MultiheadAttention"
        if [name for name, _ in block.mlp.named_children()] != ["c_fc", "gelu", "c_proj"]:
            return "its MLP is not the one of CLIP"
        if any(type(layer) is not nn.Linear for layer in (block.mlp.c_fc, block.mlp.c_proj)):
            return "the linear layers of its MLP are not torch.nn.Linear"
        if type_name(block.mlp.gelu) not in _GELUS:
            return f"its activation is {type(block.mlp.gelu).__name__}, not GELU or QuickGELU"
        if (
            type_name(block.mlp.gelu) != type_name(blocks[0].mlp.gelu)
            or attention.num_heads != blocks[0].attn.num_heads
        ):
            return "its blocks differ from each other"
        if any(type_name(scale) not in _SCALES for scale in (block.ls_1, block.ls_2)):
            return "its layer scales are not open_clip's"
    norms = [text.ln_final, *(norm for block in blocks for norm in (block.ln_1, block.ln_2))]
    if any(type_name(norm) not in _NORMS or norm.weight is None or norm.bias is None for norm in norms):
        return "its norms are not plain layer norms with weight and bias"
    return None


Version = tuple[Any, ...]
"""A value that changes whenever a weight does."""

_CONTENTS = itemgetter("_modules", "_parameters")
_HOOKS = itemgetter("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_VERSION, _TRAINED = attrgetter("_version"), attrgetter("requires_grad")
_numbers = count()


class Inventory:
    """The modules of a tower that the packed tower stands in for, and the weights that it reads.

    To walk through the modules takes many times as long as to look whether they still are the same, at every forward.

    Args:
        text: the tower.
    """

    def __init__(self, text: Any) -> None:
        self._number = next(_numbers)  # what a module does that took another's place does not show in its weights
        self._unlike = unlike_clip(text) is not None  # since a module was replaced
        self._roots = _roots(text)
        modules = [module for root in self._roots if isinstance(root, nn.Module) for module in root.modules()]
        # the namespaces of modules: a look into them takes a fifth of a look at attributes
        self._modules = tuple(map(vars, modules))
        self._contents = tuple(chain.from_iterable(map(_CONTENTS, self._modules)))
        self._held = tuple(chain.from_iterable(map(dict.values, self._contents)))
        weights = (root.parameters() if isinstance(root, nn.Module) else [root] for root in self._roots)
        self._weights = tuple(weight for weight in chain.from_iterable(weights) if weight is not None)
        # of a model that was built in inference mode, which do not tell when they change
        self._untold = any(map(Tensor.is_inference, self._weights))

    def is_of(self, text: Any) -> bool:
        """Whether no module or weight was added, taken away or replaced."""
        return (
            _same(_roots(text), self._roots)
            and _same(tuple(chain.from_iterable(map(_CONTENTS, self._modules))), self._contents)
            and _same(tuple(chain.from_iterable(map(dict.values, self._contents))), self._held)
        )

    def is_touched(self, trainable: bool) -> bool:
        """Whether the tower's own code has to run.

        So it is where its modules have hooks or a `forward` of their own, as accelerate gives them, or were replaced by
        others, such as PEFT's; while its weights are trained, and where they are inference tensors.

        Args:
            trainable: whether weights that require grad are trained.
        """
        hooks = chain.from_iterable(map(_HOOKS, self._modules))
        if self._unlike or self._untold or any(hooks) or any("forward" in module for module in self._modules):
            return True
        return trainable and any(map(_TRAINED, self._weights))

    def version(self) -> Version:
        """Of the modules and weights of blocks, final norm and projection."""
        return self._number, *version_of(self._weights)


def version_of(weights: Sequence[Tensor]) -> Version:
    """Where they lie, and how often they were written to."""
    return (*map(Tensor.data_ptr, weights), *map(_VERSION, weights))


def _roots(text: Any) -> tuple[Any, ...]:
    return text.transformer, text.ln_final, text.text_projection


def _same(these: tuple[Any, ...], those: tuple[Any, ...]) -> bool:
    return len(these) == len(those) and all(map(is_, these, those))


_inventories: WeakKeyDictionary[Any, Inventory] = WeakKeyDictionary()


def inventory(text: Any) -> Inventory:
    """The modules and weights that a tower consists of now."""
    known = _inventories.get(text)
    if known is None or not known.is_of(text):
        known = _inventories[text] = Inventory(text)
    return known
