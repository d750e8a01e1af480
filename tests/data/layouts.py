"""Miniature copies of the benchmark's sets, two classes each, laid out as CoOp's `DATASETS.md` says."""

import json
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

# set -> folder, folder of pictures, split, class name in the split -> its pictures
SPLITS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "caltech101": (
        "caltech-101",
        "101_ObjectCategories",
        "split_zhou_Caltech101.json",
        {"face": "Faces/image_{:04}.jpg", "accordion": "accordion/image_{:04}.jpg"},
    ),
    "oxford_pets": (
        "oxford_pets",
        "images",
        "split_zhou_OxfordPets.json",
        {"abyssinian": "Abyssinian_{}.jpg", "american_bulldog": "american_bulldog_{}.jpg"},
    ),
    "stanford_cars": (
        "stanford_cars",
        ".",
        "split_zhou_StanfordCars.json",
        {"2000 AM General Hummer SUV": "cars_train/{:05}.jpg", "2012 Acura RL Sedan": "cars_test/{:05}.jpg"},
    ),
    "oxford_flowers": (
        "oxford_flowers",
        "jpg",
        "split_zhou_OxfordFlowers.json",
        {"pink primrose": "image_0000{}.jpg", "hard-leaved pocket orchid": "image_0001{}.jpg"},
    ),
    "food101": (
        "food-101",
        "images",
        "split_zhou_Food101.json",
        {"apple_pie": "apple_pie/10{}.jpg", "baby_back_ribs": "baby_back_ribs/20{}.jpg"},
    ),
    "sun397": (
        "sun397",
        "SUN397",
        "split_zhou_SUN397.json",
        {"abbey": "a/abbey/sun_{}.jpg", "indoor apse": "a/apse/indoor/sun_{}.jpg"},
    ),
    "dtd": (
        "dtd",
        "images",
        "split_zhou_DescribableTextures.json",
        {"banded": "banded/banded_000{}.jpg", "blotchy": "blotchy/blotchy_000{}.jpg"},
    ),
    "eurosat": (
        "eurosat",
        "2750",
        "split_zhou_EuroSAT.json",
        {"Annual Crop Land": "AnnualCrop/AnnualCrop_{}.jpg", "Forest": "Forest/Forest_{}.jpg"},
    ),
    "ucf101": (
        "ucf101",
        "UCF-101-midframes",
        "split_zhou_UCF101.json",
        {"Apply_Eye_Makeup": "Apply_Eye_Makeup/v_{}.jpg", "Archery": "Archery/v_{}.jpg"},
    ),
}
# by folder, in the order of ImageNet's list, which has a name twice
IMAGENET = {
    "n01440764": "tench",
    "n02071294": "killer whale",
    "n03773504": "missile",
    "n04008634": "missile",
}
# set -> folder, folder of pictures, folders of classes
VARIANTS = {
    "imagenetv2": ("imagenetv2", "imagenetv2-matched-frequency-format-val", ["0", "1", "2", "3"]),
    "imagenet_sketch": ("imagenet-sketch", "images", list(IMAGENET)),
    "imagenet_a": ("imagenet-adversarial", "imagenet-a", ["n02071294", "n04008634"]),
    "imagenet_r": ("imagenet-rendition", "imagenet-r", ["n01440764", "n02071294"]),
}
PARTS = {"train": 3, "val": 1, "test": 2}  # pictures of each class
NAMES = ("imagenet", *SPLITS, "fgvc_aircraft", *VARIANTS)


def make_all(root: Path) -> Path:
    """All sets."""
    for name in SPLITS:
        make_split(root, name)
    make_aircraft(root)
    make_imagenet(root)
    for name in VARIANTS:
        make_variant(root, name)
    return root


def make_split(root: Path, name: str) -> None:
    """A set with a `split_zhou_*.json`."""
    folder, images, split, classes = SPLITS[name]
    parts: dict[str, list] = {part: [] for part in PARTS}
    for label, (class_name, pattern) in enumerate(classes.items()):
        for part, picture in _pictures():
            parts[part].append([pattern.format(picture), label, class_name])
            draw(root / folder / images / pattern.format(picture), name, class_name, picture)
    (root / folder / split).write_text(json.dumps(parts))


def make_aircraft(root: Path) -> None:
    """FGVC's own files."""
    folder = root / "fgvc_aircraft"
    lines: dict[str, str] = dict.fromkeys(PARTS, "")
    for label, variant in enumerate(["707-320", "Boeing 717"]):
        for part, picture in _pictures():
            lines[part] += f"00{label}{picture} {variant}\n"
            draw(folder / "images" / f"00{label}{picture}.jpg", variant, picture)
    (folder / "variants.txt").write_text("707-320\nBoeing 717\n")
    for part, text in lines.items():
        (folder / f"images_variant_{part}.txt").write_text(text)


def make_imagenet(root: Path) -> None:
    """ImageNet, which has no third part."""
    for folder in IMAGENET:
        for picture in range(3):
            draw(root / "imagenet/images/train" / folder / f"{folder}_{picture}.JPEG", folder, picture)
        for picture in range(2):
            draw(root / "imagenet/images/val" / folder / f"ILSVRC2012_val_{picture}.JPEG", folder, "val", picture)
    _write_class_names(root / "imagenet")


def make_variant(root: Path, name: str) -> None:
    """A variant of ImageNet, with the README that two of them bring."""
    folder, images, classes = VARIANTS[name]
    for own in classes:
        for picture in range(2):
            draw(root / folder / images / own / f"{picture}.jpeg", name, own, picture)
    (root / folder / images / "README.txt").write_text("n01440764 tench\n")
    _write_class_names(root / folder)


def _write_class_names(folder: Path) -> None:
    lines = [f"{synset} {name}\n" for synset, name in IMAGENET.items()]
    (folder / "classnames.txt").write_text("".join(lines))


def _pictures() -> list[tuple[str, int]]:
    """(part, number of the picture in its class)."""
    parts = [part for part, n in PARTS.items() for _ in range(n)]
    return [(part, i) for i, part in enumerate(parts)]


def draw(file: Path, *what: object) -> None:
    """A picture of its own; as PNG, whatever the name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    seed = zlib.crc32(repr(what).encode())
    pixels = np.random.RandomState(seed).randint(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).resize((24, 20)).save(file, "PNG")
