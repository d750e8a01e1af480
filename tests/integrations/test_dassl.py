"""Dassl's prompt checkpoints are read without running anything in them, and written as CoOp's `load_model` reads them.

The files are made as `KaiyangZhou/Dassl.pytorch:dassl/engine/trainer.py` makes them; Dassl itself is in no index.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prograd_fast as pf
from prograd_fast.integrations.dassl import prompt_options, read_checkpoint, write_checkpoint
from tests.tiny_clip import CLASS_NAMES, TOKENIZER, tiny_clip
from tests.tolerances import assert_close

NAMES = CLASS_NAMES[:4]  # the last merges with the full stop, which CoOp counts as we do


class PromptLearner(nn.Module):
    """CoOp's, as far as its state goes (`KaiyangZhou/CoOp:trainers/coop.py`)."""

    def __init__(self, model: Any, names: list[str], ctx: Tensor) -> None:
        super().__init__()
        n_ctx = ctx.shape[-2]
        names = [name.replace("_", " ") for name in names]
        self.ids = TOKENIZER([" ".join(["X"] * n_ctx) + " " + name + "." for name in names])
        words = model.token_embedding(self.ids).detach().type(ctx.dtype)
        self.ctx = nn.Parameter(ctx)
        self.register_buffer("token_prefix", words[:, :1])
        self.register_buffer("token_suffix", words[:, 1 + n_ctx :])

    def forward(self) -> Tensor:
        ctx = self.ctx if self.ctx.ndim == 3 else self.ctx.expand(len(self.ids), -1, -1)
        return torch.cat([self.token_prefix, ctx, self.token_suffix], dim=1)

    def features(self, model: Any) -> Tensor:
        """CoOp's TextEncoder."""
        with torch.no_grad():
            return F.normalize(
                pf.clip.TextTower(model).encode(self().to(model.token_embedding.weight), self.ids), dim=-1
            )


class Warmup(torch.optim.lr_scheduler.LRScheduler):
    """Dassl's ConstantWarmupScheduler: its state holds another scheduler whole, and that one the optimizer."""

    def __init__(self, optimizer: Any, successor: Any) -> None:
        self.successor = successor
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        return [1e-5 for _ in self.base_lrs]


def save(folder: Path, learner: nn.Module, epoch: int = 50, prefix: str = "") -> Path:
    """As Dassl's save_model."""
    opt = torch.optim.SGD([learner.ctx], lr=0.002, momentum=0.9)
    opt.state[learner.ctx] = {"momentum_buffer": torch.zeros_like(learner.ctx)}
    schedule = Warmup(opt, torch.optim.lr_scheduler.CosineAnnealingLR(opt, 50))
    state = {f"{prefix}{name}": value for name, value in learner.state_dict().items()}
    file = folder / "prompt_learner" / f"model.pth.tar-{epoch}"
    file.parent.mkdir()
    content = {"state_dict": state, "epoch": epoch, "optimizer": opt.state_dict(), "scheduler": schedule.state_dict()}
    torch.save(content | {"val_result": None}, file)
    return file


def context(*leading: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return 0.1 * torch.randn(*leading, 4, 32, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("leading", [(), (len(NAMES),)], ids=["shared", "class-specific"])
def test_reads(tmp_path: Path, leading: tuple[int, ...], dtype: torch.dtype, prefix: str) -> None:
    model = tiny_clip(dtype=torch.float32)
    learner = PromptLearner(model, NAMES, context(*leading, dtype=dtype))
    found = read_checkpoint(save(tmp_path, learner, prefix=prefix))
    assert torch.equal(found.ctx, learner.ctx)
    assert found.epoch == 50
    net = found.build(model, TOKENIZER, NAMES)
    expected = PromptLearner(model, NAMES, learner.ctx.detach().float()).features(model)
    assert_close(net.class_features(), expected, "tower", torch.float32)

    pf.clip.save_prompt(tmp_path / "prompt.safetensors", net, epoch=found.epoch)
    saved = pf.clip.load_prompt(tmp_path / "prompt.safetensors")
    assert torch.equal(saved.build(model, TOKENIZER).class_features(), net.class_features())


@pytest.mark.parametrize("class_specific", [False, True])
def test_writes(tmp_path: Path, class_specific: bool) -> None:
    """CoOp loads what is written, by the names of its own buffers and without them, and gets our features."""
    model = tiny_clip(dtype=torch.float32)
    net = pf.clip.PromptedCLIP(model, TOKENIZER, NAMES, n_ctx=4, class_specific=class_specific)
    file = tmp_path / "out" / "prompt_learner" / "model.pth.tar-7"
    write_checkpoint(file, net, epoch=7)
    content = torch.load(file, weights_only=True)
    assert content.keys() == {"state_dict", "epoch", "optimizer", "scheduler", "val_result"}
    learner = PromptLearner(model, NAMES, torch.zeros_like(net.prompt.ctx))
    own = {name: value.clone() for name, value in learner.state_dict().items()}
    learner.load_state_dict(content["state_dict"])
    assert all(torch.equal(own[name], learner.state_dict()[name]) for name in ("token_prefix", "token_suffix"))
    assert_close(net.class_features(), learner.features(model), "tower", torch.float32)

    again = read_checkpoint(file)
    assert again.epoch == 7
    assert torch.equal(again.build(model, TOKENIZER, NAMES).prompt.ctx, net.prompt.ctx)


def test_another_models_context_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path, PromptLearner(tiny_clip(dtype=torch.float32), NAMES, context()))
    other = tiny_clip(dtype=torch.float32)
    other.token_embedding.weight.data.neg_()
    with pytest.raises(ValueError, match="model: expected the one that this context was tuned for"):
        read_checkpoint(file).build(other, TOKENIZER, NAMES)


def test_other_classes_of_a_class_specific_context_are_refused(tmp_path: Path) -> None:
    model = tiny_clip(dtype=torch.float32)
    file = save(tmp_path, PromptLearner(model, NAMES, context(len(NAMES))))
    with pytest.raises(ValueError, match="ctx_init: expected a floating-point context"):
        read_checkpoint(file).build(model, TOKENIZER, NAMES[:2])


class Runs:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.marker}'",)


def test_nothing_in_a_file_runs(tmp_path: Path) -> None:
    state = {"ctx": context(), "deed": Runs(tmp_path / "ran")}
    torch.save({"state_dict": state, "epoch": Runs(tmp_path / "ran")}, tmp_path / "model.pth.tar-1")
    found = read_checkpoint(tmp_path / "model.pth.tar-1")
    assert torch.equal(found.ctx, context())
    assert (found.epoch, found.token_prefix) == (None, None)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"state_dict": {"ctx": [0.0]}}, "KeyError: 'ctx'"),
        ({"state_dict": {"ctx": torch.zeros(2)}}, r"ctx is torch.float32 of shape \(2,\)"),
        ({"state_dict": {"ctx": torch.full((2, 3), torch.nan)}}, "expected finite"),
        ({"state_dict": {"ctx": torch.zeros(2, 3), "token_prefix": torch.zeros(2)}}, "token_prefix has shape"),
        ({"state_dict": {"ctx": torch.zeros(2, 3), "meta_net.linear1.weight": torch.zeros(1)}}, "more was learned"),
        ({"ctx": torch.zeros(2, 3)}, "KeyError: 'state_dict'"),
        ([torch.zeros(2)], "TypeError"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: Any, reason: str) -> None:
    torch.save(content, tmp_path / "file")
    with pytest.raises(ValueError, match=f"is not a prompt checkpoint of CoOp's.*{reason}") as caught:
        read_checkpoint(tmp_path / "file")
    assert "\n" not in str(caught.value)


def test_damaged_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("prompt")
    with pytest.raises(ValueError, match="is not a prompt checkpoint"):
        read_checkpoint(tmp_path / "text")
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "none")


COOP = {"N_CTX": 16, "CSC": False, "CTX_INIT": "", "CLASS_TOKEN_POSITION": "end"}
USUAL = {"n_ctx": 16, "ctx_init": None, "class_specific": False, "class_token_position": "end"}


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, {}),
        ({"CSC": True, "N_CTX": 4}, {"class_specific": True, "n_ctx": 4}),
        ({"CLASS_TOKEN_POSITION": "middle"}, {"class_token_position": "middle"}),
        ({"CTX_INIT": "a photo of a", "CSC": True}, {"ctx_init": "a photo of a", "n_ctx": None}),
        ({"CTX_INIT": True}, {"ctx_init": "a type of pet, a photo of a"}),
    ],
)
def test_settings(own: dict[str, Any], expected: dict[str, Any]) -> None:
    options = prompt_options({"TRAINER": {"COOP": COOP | own}}, "a type of pet, a photo of a {}.")
    assert options == USUAL | expected
    pf.clip.PromptedCLIP(tiny_clip(), TOKENIZER, NAMES, **options)


def test_defaults_are_coops() -> None:
    assert prompt_options({}) == USUAL


def test_prograds_start_needs_the_template() -> None:
    with pytest.raises(ValueError, match="template: expected the dataset's"):
        prompt_options({"TRAINER": {"COOP": {"CTX_INIT": True}}})
