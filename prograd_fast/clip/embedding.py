"""The token embedding of a text tower: where it is, and other embeddings in the place of its own."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_WHY = (
    "class_features: the tower's embeddings are replaced by a hook, which torch.compile cannot trace; compile without "
    "fullgraph=True"
)


def not_traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks what replaces embeddings: torch.compile leaves it in eager mode, and says why where it must not."""
    can_say_why = "reason" in inspect.signature(torch.compiler.disable).parameters  # not in torch 2.5
    marked: Callable[..., Any] = torch.compiler.disable(function, **{"reason": _WHY} if can_say_why else {})
    return marked


_reasons: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()


def embedding_of(text: Any) -> Any:
    """The module that turns token ids into embeddings, or None: open_clip's own, or that of a Hugging Face model."""
    embedding = getattr(text, "token_embedding", None)
    if embedding is None and hasattr(getattr(text, "transformer", None), "get_input_embeddings"):
        embedding = text.transformer.get_input_embeddings()
    return embedding if isinstance(embedding, nn.Embedding) else None


@contextmanager
def replacing_embeddings(embedding: nn.Module, embeddings: Tensor) -> Iterator[None]:
    """Meanwhile the tower computes with these (N, L, d) embeddings, whatever ids it is given."""
    handle = embedding.register_forward_hook(lambda module, args, output: embeddings.to(output.dtype))
    try:
        yield
    finally:
        handle.remove()


def closed_reason(model: nn.Module, embedding: nn.Module | None) -> str | None:
    """Return why other embeddings cannot be put into a model's text tower, or None if they can.

    Of a tower that is not open_clip's own it is tried: its own embeddings must give what `encode_text` gives, to the
    last bit, and others must give something else.
    """
    if embedding is None:
        return f"{type(getattr(model, 'text', model)).__name__} has no token embedding within reach"
    if hasattr(getattr(model, "text", model), "token_embedding"):
        return None
    if model not in _reasons:
        _reasons[model] = _try(model, embedding)
    return _reasons[model]


@torch.no_grad()
def _try(model: Any, embedding: Any) -> str | None:
    was_training = model.training
    model.eval()
    ids = (torch.arange(1, 9) % embedding.num_embeddings).to(embedding.weight.device)[None]
    try:
        own = embedding(ids)
        plain = model.encode_text(ids)
        with replacing_embeddings(embedding, own):
            same = torch.equal(model.encode_text(ids), plain)
        with replacing_embeddings(embedding, own.flip(1)):
            other = not torch.equal(model.encode_text(ids), plain)
    except Exception as error:
        return f"its tower refuses embeddings ({type(error).__name__}: {error})"
    finally:
        model.train(was_training)
    return None if same and other else "its tower does not compute with the embeddings that it is given"
