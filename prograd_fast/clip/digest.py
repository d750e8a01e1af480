"""The digest of a model: two models with the same digest give the same features."""

import hashlib
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

# Facts that features depend on and no tensor shows, as open_clip's, torch's and transformers' modules call them
_SHAPELESS = ("num_heads", "num_attention_heads", "eps", "pool_type", "no_causal_mask", "use_pad_mask")

_known: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], str]] = WeakKeyDictionary()


@torch.no_grad()
def model_digest(model: nn.Module) -> str:
    """SHA-256 of a model's weights: names, shapes and values of its floating-point state, and `shapeless` facts.

    Values count in float16, so that a copy in half precision is the same model; a copy in bfloat16 is another one. The
    activation and the number of heads count since they are not among the weights. A digest is computed again after a
    weight has changed, but for changes through `.data`, which torch does not count.

    Returns:
        64 hexadecimal signs.
    """
    state = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    version = _version(state)
    if version is None or _known.get(model, ((), ""))[0] != version:
        digest = _digest(model, state)
        if version is None:
            return digest
        _known[model] = version, digest
    return _known[model][1]


def shapeless(model: nn.Module) -> list[str]:
    """Facts beside the weights on which a model's result depends: kinds of GELU, heads, pooling, by module."""
    facts = {type(module).__name__ for module in model.modules() if "GELU" in type(module).__name__}
    for name, module in model.named_modules():
        found = vars(module)
        facts |= {
            f"{name} {fact} {found[fact]}"
            for fact in _SHAPELESS
            if isinstance(found.get(fact), bool | int | float | str)
        }
    return sorted(facts)


def _digest(model: nn.Module, state: dict[str, Tensor]) -> str:
    sha = hashlib.sha256(repr(shapeless(model)).encode())
    for name in sorted(state):
        values = state[name].half().cpu().contiguous()
        sha.update(f"{name} {tuple(values.shape)}".encode())
        sha.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _version(state: dict[str, Tensor]) -> tuple[Any, ...] | None:
    """Facts that change with a weight; None for tensors of inference mode, which do not count their changes."""
    if any(tensor.is_inference() for tensor in state.values()):
        return None
    return tuple(
        (name, tensor.data_ptr(), tensor.device, tensor.dtype, tensor._version) for name, tensor in state.items()
    )
