"""Tuned prompts on disk: safetensors with JSON in the header, so that reading a stranger's file runs no code."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from prograd_fast.clip.digest import model_digest
from prograd_fast.clip.layout import ClassTokenPosition
from prograd_fast.clip.prompted import PromptedCLIP
from prograd_fast.clip.tokens import Tokenizer, readable_class_names
from prograd_fast.files.reading import check_kinds, parse_json
from prograd_fast.files.tensors import read_sealed, write_sealed

_HEADER = "prograd_fast"  # key of our JSON among the file's metadata; a safetensors header maps strings to strings
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_KINDS = {
    "class_names": list,
    "class_specific": bool,
    "class_token_position": str,
    "n_ctx": int,
    "text_width": int,
    "model_digest": str,
    "library_version": str,
    "metadata": dict,
}


@dataclass(frozen=True)
class SavedPrompt:
    """A tuned context and what is needed to use it again; the CLIP model itself is not in the file.

    Attributes:
        ctx: context tokens, (M, d), or (C, M, d) if `class_specific`; on the CPU.
        class_names: names it was tuned for.
        class_specific: whether there is one context per class.
        class_token_position: "end", "middle" or "front".
        model_digest: digest of the model that it was tuned for, see `prograd_fast.clip.model_digest`.
        library_version: version of prograd_fast that wrote the file.
        metadata: what the writer passed to `save_prompt`.
        learned: all tensors of the file by name, "ctx" and what was learned beside it; on the CPU.
    """

    ctx: Tensor
    class_names: tuple[str, ...]
    class_specific: bool
    class_token_position: ClassTokenPosition
    model_digest: str
    library_version: str
    metadata: dict[str, Any]
    learned: dict[str, Tensor]

    def build(self, model: nn.Module, tokenizer: Tokenizer, class_names: Sequence[str] | None = None) -> PromptedCLIP:
        """A net with this context, on the device of `model`.

        Args:
            model: the CLIP model that the context was tuned for.
            tokenizer: its tokenizer.
            class_names: other names to classify; None: those of the file.

        Raises:
            ValueError: the context was tuned for another model; it is class-specific and the names are others; or more
                was learned than a context, which a prompted net has no place for.
        """
        beside = [name for name, tensor in self.learned.items() if name != "ctx" and tensor.numel()]
        if beside:
            raise ValueError(
                f"more was learned than a context ({', '.join(beside[:3])}), which this net would leave out; open the "
                "whole run with prograd_fast.training.open_run(FOLDER)"
            )
        if model_digest(model) != self.model_digest:
            raise ValueError(
                f"model: expected the one that this context was tuned for (digest {self.model_digest[:12]}), got "
                f"another (digest {model_digest(model)[:12]}): other weights or another activation. Use the "
                "model that it was tuned for."
            )
        net = PromptedCLIP(
            model,
            tokenizer,
            self.class_names,
            n_ctx=None,
            ctx_init=self.ctx,
            class_specific=self.class_specific,
            class_token_position=self.class_token_position,
        )
        return net if class_names is None else net.with_classes(class_names)


def save_prompt(
    path: str | os.PathLike[str], net: PromptedCLIP, learned: Mapping[str, Tensor] | None = None, **metadata: Any
) -> None:
    """Write the context of `net` to a safetensors file, all of it or nothing.

    The file is written under a temporary name in the same folder, then renamed over `path`.

    Args:
        path: where to; an existing file is replaced.
        net: the tuned net.
        learned: tensors that were learned beside the context, by name, such as CoCoOp's network.
        **metadata: anything JSON can hold, such as the model's name, shots, seed, accuracies.

    Raises:
        TypeError: `metadata` holds something JSON cannot.
        OSError: the folder does not exist or cannot be written.
        ModuleNotFoundError: safetensors is not installed.
    """
    header = {
        "class_names": net.class_names,
        "class_specific": net.class_specific,
        "class_token_position": net.class_token_position,
        "n_ctx": net.n_ctx,
        "text_width": net.tower.width,
        "model_digest": model_digest(net.model),
    }
    save_learned(path, {**(learned or {}), "ctx": net.prompt.ctx}, header, **metadata)


def save_learned(
    path: str | os.PathLike[str], learned: Mapping[str, Tensor], header: Mapping[str, Any], **metadata: Any
) -> None:
    """Write named tensors, which need not belong to a prompt, as `save_prompt` does.

    Args:
        path: where to; an existing file is replaced.
        learned: the tensors.
        header: what a reader needs to know of them, JSON.
        **metadata: as for `save_prompt`, and the errors too.
    """
    try:
        text = json.dumps({**header, "library_version": version("prograd-fast"), "metadata": metadata})
    except TypeError as error:
        raise TypeError(
            f"save_prompt: metadata must be what JSON can hold (numbers, strings, lists, dicts): {error}"
        ) from error
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in learned.items()}
    write_sealed(Path(path), _HEADER, text, tensors)


def load_prompt(path: str | os.PathLike[str]) -> SavedPrompt:
    """Read a file of `save_prompt`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, too large, no regular file or something else, the context has NaN or infinite
            values, or is not floating-point.
        ModuleNotFoundError: safetensors is not installed.
    """
    learned, header = load_learned(path)
    try:
        check_kinds(header, _KINDS)
        if header["class_token_position"] not in get_args(ClassTokenPosition):
            raise ValueError(f"class_token_position is {header['class_token_position']!r}")
        if "ctx" not in learned:
            raise ValueError("it has no context")
        saved = SavedPrompt(
            ctx=learned["ctx"],
            class_names=readable_class_names(header["class_names"]),
            class_specific=header["class_specific"],
            class_token_position=header["class_token_position"],
            model_digest=header["model_digest"],
            library_version=header["library_version"],
            metadata=header["metadata"],
            learned=learned,
        )
        leading = (len(saved.class_names),) if saved.class_specific else ()
        expected = (*leading, header["n_ctx"], header["text_width"])
        if saved.ctx.shape != expected:
            raise ValueError(f"the context has shape {tuple(saved.ctx.shape)}, the header says {expected}")
    except (TypeError, ValueError) as error:
        raise _not_whole(path, error) from error
    return saved


def load_learned(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header of a file of `save_prompt` or `save_learned`.

    Raises:
        FileNotFoundError, ValueError, ModuleNotFoundError: as `load_prompt`.
    """
    try:
        text, learned = read_sealed(Path(path), _HEADER)
        header = parse_json(text)
        check_kinds(header, {"library_version": str, "metadata": dict})
        for name, tensor in learned.items():
            if tensor.dtype not in _FLOATS:
                raise ValueError(f"{name} is {tensor.dtype}; expected floating-point numbers of 16 to 64 bits")
            if not tensor.float().isfinite().all():  # as the model takes them: a float64 can be beyond that
                raise ValueError(f"{name} has NaN or infinite values")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise _not_whole(path, error) from error
    return learned, header


def _not_whole(path: str | os.PathLike[str], error: Exception) -> ValueError:
    return ValueError(
        f"{path} is not a whole prompt file written by prograd_fast's save_prompt ({error}); write it again with "
        "save_prompt(path, net)"
    )
