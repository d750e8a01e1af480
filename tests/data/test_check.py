"""`data check` tells everything that spoils a training before there is one; `cache` what is kept."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from prograd_fast.data.alike import alike_pairs, signature
from tests.cli.support import run_here


def photo(seed: int) -> Image.Image:
    random = np.random.RandomState(seed)
    small = Image.fromarray(random.randint(0, 256, (9, 12, 3), np.uint8))
    return small.resize((240, 180), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a split of its own, and nothing wrong."""
    for i, file in enumerate(f"{part}/{name}/{i}.jpg" for part in ("train", "test") for name in "ab" for i in range(3)):
        path = tmp_path / "photos" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(i).save(path)
    return tmp_path / "photos"


def smaller(image: Image.Image) -> Image.Image:
    return image.resize((100, 75))


def brighter(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1.2)


def cropped(image: Image.Image) -> Image.Image:
    return image.crop((2, 2, image.width - 2, image.height - 1))


def copy(root: Path, one: str, other: str) -> None:
    shutil.copy(root / one, root / other)


def dangle(root: Path) -> None:
    (root / "train/a/9.jpg").symlink_to(root / "nowhere.jpg")


SPOILED = {
    "cannot be read": lambda root: (root / "train/a/0.jpg").write_bytes(b"no picture"),
    "1 picture cannot be read: .*9.jpg": dangle,
    "in more than one class.*train/a/0.jpg = test/b/0.jpg": lambda root: copy(root, "train/a/0.jpg", "test/b/0.jpg"),
    "both training and testing.*train/a/0.jpg = test/a/0.jpg": lambda root: copy(root, "train/a/0.jpg", "test/a/0.jpg"),
    "more than once.*train/a/0.jpg = train/a/9.jpg": lambda root: copy(root, "train/a/0.jpg", "train/a/9.jpg"),
    "for testing looks like.*test/a/0.png ~ train/a/0.jpg": lambda root: photo(0).save(root / "test/a/0.png"),
}


@pytest.mark.parametrize("problem", SPOILED)
def test_problems_are_told(folder, problem, capfd, monkeypatch):
    SPOILED[problem](folder)
    assert run_here(monkeypatch, "data", "check", folder) == 3
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("Problem: ")]
    assert len(lines) == 1
    assert re.search(problem, lines[0]), lines


def test_a_sound_folder(folder, capfd, monkeypatch):
    assert run_here(monkeypatch, "data", "check", folder) == 0
    said = capfd.readouterr().out
    assert "│ a     │ 3             │ 0          │ 3    │ 6   │" in said
    assert "Sizes in pixels: 240 x 180 (smallest), 240 x 180 (median), 240 x 180 (largest)" in said
    assert said.endswith("No problem found.\n")


def test_a_plain_folder_with_bad_files(folder, capfd, monkeypatch):
    """They cannot be split, and are told all the same."""
    dangle(folder)
    assert run_here(monkeypatch, "data", "check", folder / "train") == 3
    assert "Problem: 1 picture cannot be read" in capfd.readouterr().out


def test_all_pictures_that_cannot_be_read_are_listed(folder, capfd, monkeypatch):
    for file in ("train/a/0.jpg", "train/a/1.jpg", "train/b/0.jpg", "test/b/2.jpg"):
        (folder / file).write_bytes(b"no picture")
    assert run_here(monkeypatch, "data", "check", folder) == 3
    lines = capfd.readouterr().out.splitlines()
    assert "Problem: 4 pictures cannot be read: replace or remove those that are listed below." in lines
    assert [file for file in lines if "not a known picture format" in file] == lines[-4:]


@pytest.mark.parametrize("change", [smaller, brighter, cropped, lambda image: image.convert("L").convert("RGB")])
def test_changed_copies_are_found(change):
    one = [photo(seed) for seed in range(20)]
    first = np.stack([signature(image) for image in one])
    grey = np.stack([signature(image.convert("L").convert("RGB")) for image in one])
    second = np.stack([signature(change(image)) for image in one])
    found = alike_pairs(grey if "lambda" in change.__name__ else first, second)
    assert found == [(i, i) for i in range(20)]


def test_pictures_of_one_colour_are_no_copies():
    flat = np.stack([signature(Image.new("RGB", (40, 30), colour)) for colour in ("red", "white", "black")])
    assert alike_pairs(flat, flat) == []


def test_the_cache_on_the_command_line(folder, tmp_path, clip_dir, capfd, monkeypatch):
    cache, model = tmp_path / "cache", f"local-dir:{clip_dir}"
    assert run_here(monkeypatch, "cache", "info", "--cache", cache) == 0
    assert "holds no image features" in capfd.readouterr().out
    options = ["--data", folder, "--out", tmp_path / "run", "--model", model, "--cache", cache, "--epochs", 2]
    assert run_here(monkeypatch, "train", *options) == 0
    capfd.readouterr()
    assert run_here(monkeypatch, "cache", "info", "--cache", cache) == 0
    assert "│ 12 " in capfd.readouterr().out
    assert run_here(monkeypatch, "cache", "clear", "--cache", cache) == 0
    assert f"of image features from {cache}" in capfd.readouterr().out
    assert list(cache.iterdir()) == []
