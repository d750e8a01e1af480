"""Fixtures that several tests need: a folder of generated pictures, and a tiny model that open_clip loads by name."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from prograd_fast.clip import LoadedClip, load_model
from prograd_fast.data import PictureSet, load_folder
from tests.tiny_clip import tiny_clip

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or fills the user's caches, or takes a second core; processes that tests start inherit this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c() -> None:
    """Tests in the background hear Ctrl-C too: their shell has it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests come first: at the end a worker would do them one after another while others wait."""
    items.sort(key=lambda item: item.path.name != "test_interpreter.py")


# Easy to tell apart by colour, so that a few pictures of each are enough even for a model with random weights.
SHAPES = {"red_circle": (220, 30, 30), "blue_square": (30, 60, 220), "green_bar": (30, 170, 60), "black_dot": (0, 0, 0)}
PER_CLASS = 10


def draw(folder: str, seed: int) -> Image.Image:
    """One 24-pixel picture of a class, a little different for every seed."""
    random = np.random.RandomState(seed)
    x, y = random.randint(2, 8, 2).tolist()
    colour = tuple(np.clip(np.array(SHAPES[folder]) + random.randint(-25, 25, 3), 0, 255).tolist())
    image = Image.new("RGB", (24, 24), "white")
    pen = ImageDraw.Draw(image)
    match folder:
        case "red_circle":
            pen.ellipse((x, y, x + 13, y + 13), fill=colour)
        case "blue_square":
            pen.rectangle((x, y, x + 12, y + 12), fill=colour)
        case "green_bar":
            pen.rectangle((0, y, 23, y + 6), fill=colour)
        case "black_dot":
            pen.ellipse((x, y, x + 5, y + 5), fill=colour)
    return image


def draw_shapes(root: Path, per_class: int = PER_CLASS) -> Path:
    """A folder of pictures in the plain layout, one folder per class."""
    for label, folder in enumerate(SHAPES):
        (root / folder).mkdir(parents=True)
        for i in range(per_class):
            # as BMP, whatever the name: the split goes by the bytes, and a PNG's are not the same with every zlib
            draw(folder, 100 * label + i).save(root / folder / f"{i:02}.png", "BMP")
    return root


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures; tests only read it."""
    return draw_shapes(tmp_path_factory.mktemp("pictures") / "shapes")


@pytest.fixture(scope="session")
def shapes(shapes_dir: Path) -> PictureSet:
    """The same as a set."""
    return load_folder(shapes_dir)


@pytest.fixture(scope="session")
def clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights, as a folder that open_clip loads as local-dir:FOLDER."""
    folder = tmp_path_factory.mktemp("tiny-clip")
    config = {
        "embed_dim": 24,
        "vision_cfg": {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16},
        "text_cfg": {"width": 32, "heads": 2, "layers": 2},
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    weights = tiny_clip(dtype=torch.float32).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def clip(clip_dir: Path) -> LoadedClip:
    """The same, loaded."""
    return load_model(f"local-dir:{clip_dir}", device="cpu")
