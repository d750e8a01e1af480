"""Dassl and CoOp: their prompt checkpoints, and their settings of prompts."""

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prograd_fast.clip import ClassTokenPosition, PromptedCLIP, Tokenizer
from prograd_fast.clip.pretrained.archive import Archive, StoredTensor
from prograd_fast.files.reading import check_regular
from prograd_fast.files.writing import replacing

_LARGEST, _KNOWN = 4 << 30, {"ctx", "token_prefix", "token_suffix"}  # bytes; names in the state dict
_SAME = 1e-2  # of embeddings that were rounded to float16: they differ by 1e-3 of the largest


@dataclass(frozen=True)
class CoOpPrompt:
    """The context of a checkpoint. It says neither where the class names stand nor what they are.

    Attributes:
        ctx: (M, d), or (C, M, d) for class-specific contexts; in the dtype of the file, on the CPU.
        epoch: number of epochs it was trained for, None if the file does not tell.
        token_prefix: (C, 1, d) embeddings of the start of text, None if the file has none.
    """

    ctx: Tensor
    epoch: int | None
    token_prefix: Tensor | None

    def build(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        class_names: Sequence[str],
        class_token_position: ClassTokenPosition = "end",
    ) -> PromptedCLIP:
        """A net with this context, for `prograd_fast.clip.save_prompt` or to go on with.

        Args:
            model: the CLIP model that the context was tuned for.
            tokenizer: its tokenizer.
            class_names: the names to classify; for class-specific contexts those of training, in that order.
            class_token_position: their `CLASS_TOKEN_POSITION`.

        Raises:
            ValueError: the context was tuned for another model, or has another number of classes.
        """
        ctx = self.ctx.to(torch.promote_types(self.ctx.dtype, torch.float32))
        net = PromptedCLIP(model, tokenizer, class_names, None, ctx, ctx.ndim == 3, class_token_position)
        if self.token_prefix is not None:
            own = net.tower.embed(tokenizer(["X"])[:, :1])[0, 0].float().cpu()
            if not torch.allclose(self.token_prefix.flatten(0, -2)[0].float(), own, 0, _SAME * float(own.abs().max())):
                raise ValueError(
                    "model: expected the one that this context was tuned for, got one whose start-of-text token has "
                    "another embedding. Use the model that it was tuned for."
                )
        return net


def read_checkpoint(path: str | os.PathLike[str]) -> CoOpPrompt:
    """Read `prompt_learner/model.pth.tar-E` of CoOp, ProGrad and other trainers that learn nothing but a `ctx`.

    Nothing in the file runs: of what it names, optimizers and schedulers included, only tensors are made.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a checkpoint, or it is damaged.
    """
    check_regular(Path(path), _LARGEST)
    try:
        tree = Archive.open(Path(path)).tree
        entries, epoch = tree["state_dict"].items(), tree.get("epoch")
        stored = {name.removeprefix("module."): value for name, value in entries if isinstance(value, StoredTensor)}
        if beside := sorted(stored.keys() - _KNOWN):
            raise ValueError(f"more was learned than a context: {', '.join(beside[:3])}")
        ctx = stored["ctx"].read()
        prefix = stored["token_prefix"].read() if "token_prefix" in stored else None
        if ctx.ndim not in (2, 3) or not ctx.is_floating_point() or not ctx.isfinite().all():
            raise ValueError(f"ctx is {ctx.dtype} of shape {tuple(ctx.shape)}; expected finite (M, d) or (C, M, d)")
        if prefix is not None and (prefix.ndim != 3 or prefix.shape[-1] != ctx.shape[-1] or not prefix.numel()):
            raise ValueError(f"token_prefix has shape {tuple(prefix.shape)}; expected (C, 1, {ctx.shape[-1]})")
    except Exception as error:  # what a file from anybody holds can fail in any way
        reason = error if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is not a prompt checkpoint of CoOp's, in torch 1.6's format ({reason})") from error
    return CoOpPrompt(ctx, epoch if isinstance(epoch, int) else None, prefix)


def write_checkpoint(path: str | os.PathLike[str], net: PromptedCLIP, epoch: int) -> None:
    """Write the context as a checkpoint that CoOp's `load_model` reads, all of it or nothing.

    The state dict has the names of CoOp's `PromptLearner`: `ctx`, `token_prefix` (C, 1, d) and `token_suffix`
    (C, L - 1 - M, d). There is no optimizer in it: it is for evaluation, and to start from.

    Args:
        path: such as `OUTPUT/prompt_learner/model.pth.tar-50`; the folder is made.
        net: the tuned net, with OpenAI's tokenizer, as CoOp has it.
        epoch: number of epochs that it was trained for; CoOp prints it.

    Raises:
        OSError: it cannot be written.
    """
    placeholder = " ".join(["X"] * net.n_ctx)
    words = net.tower.embed(net.tokenizer([f"{placeholder} {name}." for name in net.class_names])).cpu()
    state = OrderedDict(
        ctx=net.prompt.ctx.detach().cpu().clone(),
        token_prefix=words[:, :1].clone(),
        token_suffix=words[:, 1 + net.n_ctx :].clone(),
    )
    content = {"state_dict": state, "epoch": epoch, "optimizer": None, "scheduler": None, "val_result": None}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(Path(path)) as temporary:
        torch.save(content, temporary)


def prompt_options(cfg: Mapping[str, Any], template: str | None = None, trainer: str = "COOP") -> dict[str, Any]:
    """The options of `PromptedCLIP` for `TRAINER.COOP.N_CTX`, `CTX_INIT`, `CSC` and `CLASS_TOKEN_POSITION`.

    As in CoOp and ProGrad `CSC` has no effect beside `CTX_INIT`, and words have as many context tokens as they have
    tokens (CoOp counts words, see `PromptedCLIP`). ProGrad's `CTX_INIT: True` fills the last of `N_CTX` tokens.

    Args:
        cfg: yacs' node or nested dictionaries, as their YAML files hold them; missing keys have CoOp's defaults.
        template: the dataset's, such as "a photo of a {}.": what ProGrad's `CTX_INIT: True` starts from.
        trainer: the node below `TRAINER` (default: "COOP", which ProGrad reads too).

    Raises:
        ValueError: `CTX_INIT` is True and there is no template.
    """
    own = cfg.get("TRAINER", {}).get(trainer, {})
    words, n_ctx = own.get("CTX_INIT", ""), own.get("N_CTX", 16)
    if words is True:
        if template is None or "{}" not in template:
            raise ValueError(
                f"template: expected the dataset's, with {{}} for the name, for CTX_INIT True; got {template!r}."
            )
        words = template.split("{}")[0].strip()
    elif words:
        n_ctx = None
    return {
        "n_ctx": n_ctx,
        "ctx_init": words or None,
        "class_specific": bool(own.get("CSC", False)) and not words,
        "class_token_position": own.get("CLASS_TOKEN_POSITION", "end"),
    }
