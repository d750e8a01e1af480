"""CLIP-LoRA with ProGrad's projection: low-rank changes of the attention of both towers, by peft.

`python -m examples.image_towers.clip_lora`. Zanella and Ben Ayed, CVPR workshops 2024, arXiv:2405.18541; code
MaxZanella/CLIP-LoRA. Published: rank 2 on the query, key and value of every block, α = 1, dropout 0.25, AdamW at 2e-4,
batches of 32. peft puts one change of rank 2 on all three together, and one on the output of the attention, and has no
dropout there.
"""

from peft import LoraConfig, inject_adapter_in_model

from examples.image_towers.common import Tuned, main
from prograd_fast.clip import LoadedClip


class CLIPLoRA(Tuned):
    """Adapters in both towers."""

    def __init__(self, clip: LoadedClip) -> None:
        super().__init__(clip, lr=2e-3)
        for tower in (self.model.visual, self.model):
            inject_adapter_in_model(LoraConfig(r=2, lora_alpha=1, target_modules=["attn"]), tower.transformer)


if __name__ == "__main__":
    main("CLIP-LoRA", CLIPLoRA)
