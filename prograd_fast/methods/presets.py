"""Settings that the authors of several methods share."""

from typing import Any

# KaiyangZhou/CoOp:configs/trainers/CoOp; most others go on from there. 200 epochs at 16 and 8 shots, 100 at 4 and 2.
COOP: dict[str, Any] = {
    "ctx_init": None,
    "n_ctx": 16,
    "lr": 0.002,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "batch_size": 32,
    "warmup_epochs": 1,
    "warmup_lr": 1e-5,
}
FEW_SHOT_EPOCHS = {1: 50, 2: 100, 4: 100, 8: 200, 16: 200}


def few_shot(**changes: Any) -> dict[str, dict[str, Any]]:
    """CoOp's settings on RN50 for each number of shots, and on ImageNet."""
    presets = {f"rn50-{n}-shot": {**COOP, "epochs": epochs, **changes} for n, epochs in FEW_SHOT_EPOCHS.items()}
    return {**presets, "rn50-imagenet": {**COOP, "epochs": 50, **changes}}
