"""Keys and features, the files of a cache, and a counting tower: shared by tests of image features."""

from pathlib import Path

import pytest
import torch

from prograd_fast.clip import LoadedClip

KEYS = [bytes([i]) * 32 for i in range(5)]
VALUES = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))


def shards(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/*.safetensors"))


class Counted:
    """A clip whose image tower counts its batches."""

    def __init__(self, clip: LoadedClip, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches = 0
        encode = clip.model.encode_image

        def encode_image(images: torch.Tensor) -> torch.Tensor:
            self.batches += 1
            return encode(images)

        monkeypatch.setattr(clip.model, "encode_image", encode_image)
