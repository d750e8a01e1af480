"""Tuned prompts on disk: safetensors with JSON in the header, so that reading a stranger's file runs no code."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prograd_fast.clip.layout import ClassTokenPosition
from prograd_fast.clip.prompted import PromptedCLIP
from prograd_fast.clip.tokens import Tokenizer, readable_class_names
from prograd_fast.files import replacing, safetensors_package

_HEADER = "prograd_fast"  # key of our JSON among the file's metadata; a safetensors header maps strings to strings


@dataclass(frozen=True)
class SavedPrompt:
    """A tuned context and what is needed to use it again; the CLIP model itself is not in the file.

    Attributes:
        ctx: context tokens, (M, d), or (C, M, d) if `class_specific`; on the CPU.
        class_names: names it was tuned for.
        class_specific: whether there is one context per class.
        class_token_position: "end", "middle" or "front".
        library_version: version of prograd_fast that wrote the file.
        metadata: what the writer passed to `save_prompt`.
    """

    ctx: Tensor
    class_names: tuple[str, ...]
    class_specific: bool
    class_token_position: ClassTokenPosition
    library_version: str
    metadata: dict[str, Any]

    def build(self, model: nn.Module, tokenizer: Tokenizer, class_names: Sequence[str] | None = None) -> PromptedCLIP:
        """A net with this context, on the device of `model`.

        Args:
            model: the CLIP model that the context was tuned for.
            tokenizer: its tokenizer.
            class_names: other names to classify; None: those of the file.

        Raises:
            ValueError: the context does not fit the model's text tower, or is class-specific and the names are others.
        """
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


def save_prompt(path: str | os.PathLike[str], net: PromptedCLIP, **metadata: Any) -> None:
    """Write the context of `net` to a safetensors file, all of it or nothing.

    The file is written under a temporary name in the same folder, then renamed over `path`.

    Args:
        path: where to; an existing file is replaced.
        net: the tuned net.
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
        "library_version": version("prograd-fast"),
        "metadata": metadata,
    }
    try:
        text = json.dumps(header)
    except TypeError as error:
        raise TypeError(
            f"save_prompt: metadata must be what JSON can hold (numbers, strings, lists, dicts): {error}"
        ) from error
    content = safetensors_package().torch.save({"ctx": net.prompt.ctx.detach().cpu().contiguous()}, {_HEADER: text})
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(content)


def load_prompt(path: str | os.PathLike[str]) -> SavedPrompt:
    """Read a file of `save_prompt`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is corrupt or something else.
        ModuleNotFoundError: safetensors is not installed.
    """
    safetensors = safetensors_package()
    path = Path(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            ctx = file.get_tensor("ctx")
        saved = SavedPrompt(
            ctx=ctx,
            class_names=readable_class_names(header["class_names"]),
            class_specific=header["class_specific"],
            class_token_position=header["class_token_position"],
            library_version=header["library_version"],
            metadata=header["metadata"],
        )
        leading = (len(saved.class_names),) if saved.class_specific else ()
        expected = (*leading, header["n_ctx"], header["text_width"])
        if ctx.shape != expected:
            raise ValueError(f"the context has shape {tuple(ctx.shape)}, the header says {expected}")
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a whole prompt file written by prograd_fast's save_prompt "
            f"({type(error).__name__}: {error}); write it again with save_prompt(path, net)"
        ) from error
    return saved
