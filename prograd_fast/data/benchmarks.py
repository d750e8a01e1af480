"""The field's benchmark: eleven sets and four variants of ImageNet, in the folders that users of CoOp have.

The layout, the splits and the class names are those of KaiyangZhou/CoOp: `DATASETS.md` and `datasets/*.py`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from prograd_fast.data.pictures import PictureSet
from prograd_fast.data.walk import pictures_in, subfolders
from prograd_fast.files.reading import read_json, read_text, short

_DRIVE = "https://drive.google.com/file/d/"
_PARTS = {"train": "pool", "val": "validation", "test": "test"}
_CLASS_NAMES = "classnames.txt"

Picture = tuple[Path, str, int]  # file, part, label


@dataclass
class Labelled:
    """The pictures of a set and its class names by label, as a reader finds them."""

    pictures: list[Picture] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Benchmark:
    """One set of the benchmark, and where its files belong below the root.

    Attributes:
        name: how it is called here, as in CoOp's `configs/datasets`.
        coop_name: how it is called in CoOp's code, and in `prograd_fast.methods.templates.DATASETS`.
        classes: how many it has.
        folder: the folder of the set.
        images: the folder in it that names of pictures begin from.
        needed: files and folders in it that must be there -> where they come from.
        read: finds its pictures.
        torchvision: torchvision's dataset class that downloads the pictures; "" for none.
        torchvision_folder: where that class puts them, if not in `folder`. They are found there too.
    """

    name: str
    coop_name: str
    classes: int
    folder: str
    images: str
    needed: Mapping[str, str]
    read: Callable[["Benchmark", Path], Labelled]
    torchvision: str = ""
    torchvision_folder: str = ""

    def find(self, root: Path, name: str) -> Path:
        """A file or folder of the set: where it is, or else where it belongs."""
        here = root / self.folder / name
        there = root / self.torchvision_folder / name
        return there if self.torchvision_folder and there.exists() and not here.exists() else here

    def missing(self, root: Path) -> list[str]:
        """A sentence for each file or folder that is needed and not there: where it belongs, and whence it comes."""
        return [
            f"{self.find(root, name)} is missing: {source}"
            for name, source in self.needed.items()
            if not self.find(root, name).exists()
        ]


def load_benchmark(name: str, root: str | Path) -> PictureSet:
    """Load a set of the benchmark. Its split is the published one: train is the pool, val is validation.

    ImageNet's validation pictures are its test pictures, as published, and nothing is chosen by them. Its variants have
    test pictures alone. Classes are in the order of the published labels; underscores in names become spaces. Names may
    be equal, as in ImageNet's list. That the pictures which a split names are there is not checked: see
    `missing_pictures`.

    Args:
        name: a key of `BENCHMARKS`.
        root: the folder that holds the folders of all sets.

    Returns:
        The set; `published` is true, `folder` is the absolute root.

    Raises:
        ValueError: there is no such set or root, a file is missing, damaged or of another form, a folder of classes has
            no picture or no name, or ImageNet's validation pictures are not in folders of classes.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"no set {name!r} of the benchmark: expected one of {', '.join(BENCHMARKS)}")
    benchmark, root = BENCHMARKS[name], Path(root)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; expected the root of the benchmark, with {benchmark.folder}/ in it")
    if lines := benchmark.missing(root):
        more = f" ({len(lines) - 1} more: `prograd-fast data check {name} --root {root}`)" if len(lines) > 1 else ""
        raise ValueError(f"{name}: {lines[0]}{more}")
    found = benchmark.read(benchmark, root)
    if sorted(found.names) != list(range(len(found.names))) or len(found.names) < 2:
        raise ValueError(f"{name}: expected labels 0, 1, ... of two classes or more, got {short(sorted(found.names))}")
    return PictureSet(
        name=name,
        class_names=tuple(found.names[label].replace("_", " ").strip() for label in range(len(found.names))),
        labels=np.array([label for _, _, label in found.pictures], dtype=np.int64),
        split=np.array([part for _, part, _ in found.pictures]),
        style=np.zeros(len(found.pictures), "U1"),
        source=[file for file, _, _ in found.pictures],
        folder=root.resolve(),
        ignored=+found.ignored,
        published=True,
    )


def missing_pictures(pictures: PictureSet) -> list[Path]:
    """The files of a set of the benchmark that its split names and that are not there, in order."""
    return [file for file in map(Path, pictures.source) if not file.is_file()]  # type: ignore[arg-type]  # files alone


def download(name: str, root: Path) -> None:
    """Download the pictures of a set with torchvision's class, unless they are there; nothing where it has none.

    Args:
        name: a key of `BENCHMARKS`.
        root: as in `load_benchmark`; it is made.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
        OSError, RuntimeError: the download fails.
    """
    benchmark = BENCHMARKS[name]
    if benchmark.torchvision and not benchmark.find(root, benchmark.images).is_dir():
        from torchvision import datasets

        root.mkdir(parents=True, exist_ok=True)
        getattr(datasets, benchmark.torchvision)(str(root), download=True)


def _read_split(benchmark: Benchmark, root: Path) -> Labelled:
    """CoOp's `split_zhou_*.json`: {"train": [[picture, label, class name], ...], "val": ..., "test": ...}."""
    file = benchmark.find(root, _split_file(benchmark.coop_name))
    images = benchmark.find(root, benchmark.images)
    with _naming(file):
        split = read_json(file)
        if not isinstance(split, dict) or not split.keys() >= _PARTS.keys():
            raise ValueError("expected an object with train, val and test")
        found = Labelled()
        for key, part in _PARTS.items():
            for name, label, class_name in _entries(split[key]):
                if found.names.setdefault(label, class_name) != class_name:
                    raise ValueError(f"label {label} is called {found.names[label]!r} and {class_name!r}")
                found.pictures.append((images / name, part, label))
    return found


def _entries(values: Any) -> Iterator[tuple[str, int, str]]:
    """(picture, label, class name) of one part; ValueError for anything else, and for paths that lead elsewhere."""
    for value in values if isinstance(values, list) else [values]:
        match value:
            case [str(name), int(label), str(class_name)] if (
                label >= 0 and not isinstance(label, bool) and class_name.strip()
            ):
                path = PurePosixPath(name)
                if path.is_absolute() or ".." in path.parts or "\0" in name:
                    raise ValueError(f"expected a picture below the folder of pictures, got {short(name)}")
                yield name, label, class_name
            case _:
                raise ValueError(f"expected [picture, label, class name], got {short(value)}")


def _read_aircraft(benchmark: Benchmark, root: Path) -> Labelled:
    """FGVC's own files: `variants.txt` has the classes, each line of `images_variant_*.txt` a picture and its class."""
    listed = _lines(benchmark.find(root, "variants.txt"))
    label_of = {name: label for label, name in enumerate(listed)}
    images = benchmark.find(root, benchmark.images)
    found = Labelled(names=dict(enumerate(listed)))
    for key, part in _PARTS.items():
        file = benchmark.find(root, f"images_variant_{key}.txt")
        for line in _lines(file):
            picture, _, variant = line.partition(" ")
            if variant not in label_of:
                raise ValueError(f"{file}: expected a picture and a class of variants.txt, got the line {line!r}")
            found.pictures.append((images / f"{picture}.jpg", part, label_of[variant]))
    return found


def _read_imagenet(benchmark: Benchmark, root: Path) -> Labelled:
    """Folders of classes in `train` and in `val`, which holds the test pictures; a label is a folder's place."""
    found = Labelled()
    train, val = (benchmark.find(root, f"{benchmark.images}/{part}") for part in ("train", "val"))
    folders = subfolders(train, found.ignored)
    tested = subfolders(val, found.ignored)
    if [folder.name for folder in folders] != [folder.name for folder in tested]:
        raise ValueError(
            f"{val}: found {len(tested)} folders; expected the {len(folders)} class folders of {train}. Pictures that "
            "lie in val/ itself belong into the folder of their class"
        )
    names = _class_names(benchmark, root)
    for part, own in (("pool", folders), ("test", tested)):
        for label, folder in enumerate(own):
            _add_class(found, folder, part, label, _name_of(names, folder))
    return found


def _read_variant(benchmark: Benchmark, root: Path) -> Labelled:
    """Folders of ImageNet's classes, all or some of them; a label is a folder's place among them."""
    found, names = Labelled(), _class_names(benchmark, root)
    for label, folder in enumerate(subfolders(benchmark.find(root, benchmark.images), found.ignored)):
        _add_class(found, folder, "test", label, _name_of(names, folder))
    return found


def _read_numbered(benchmark: Benchmark, root: Path) -> Labelled:
    """ImageNet-V2: the folders are called by the place of their class in `classnames.txt`."""
    found, names = Labelled(), list(_class_names(benchmark, root).values())
    images = benchmark.find(root, benchmark.images)
    folders = {folder.name: folder for folder in subfolders(images, found.ignored)}
    if folders.keys() != {str(label) for label in range(len(names))}:
        raise ValueError(
            f"{images}: found {len(folders)} folders; expected 0 to {len(names) - 1}, one for each line of "
            f"{_CLASS_NAMES}"
        )
    for label, name in enumerate(names):
        _add_class(found, folders[str(label)], "test", label, name)
    return found


def _add_class(found: Labelled, folder: Path, part: str, label: int, name: str) -> None:
    found.names[label] = name
    found.pictures += [(file, part, label) for file in pictures_in(folder, found.ignored)]


def _class_names(benchmark: Benchmark, root: Path) -> dict[str, str]:
    """Folder -> class name, in the order of the lines of `classnames.txt`."""
    file = benchmark.find(root, _CLASS_NAMES)
    names: dict[str, str] = {}
    for line in _lines(file):
        folder, _, name = line.partition(" ")
        if not name.strip() or folder in names:
            raise ValueError(f"{file}: expected a folder and a class name, each folder once, got the line {line!r}")
        names[folder] = name
    return names


def _name_of(names: Mapping[str, str], folder: Path) -> str:
    if folder.name not in names:
        raise ValueError(f"{folder}: expected a class folder of {_CLASS_NAMES}, which has no line for {folder.name}")
    return names[folder.name]


def _lines(file: Path) -> list[str]:
    """The lines of a text file, without the empty ones."""
    with _naming(file):
        return [line.strip() for line in read_text(file).splitlines() if line.strip()]


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """A block whose errors with the file are a ValueError that names it."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f"{file} cannot be used: {error}") from error


def _split_file(coop_name: str) -> str:
    return f"split_zhou_{coop_name}.json"


def _with_split(
    name: str, coop_name: str, classes: int, folder: str, pictures: Mapping[str, str], split: str, **more: str
) -> Benchmark:
    """A set with a `split_zhou_*.json`, which has this id on Google Drive."""
    needed = {**pictures, _split_file(coop_name): f"get it from {_DRIVE}{split}"}
    images = more.pop("images", next(iter(pictures)))
    return Benchmark(name, coop_name, classes, folder, images, needed, _read_split, **more)


def _variant(
    name: str, coop_name: str, classes: int, folder: str, images: str, source: str, read: Any = None
) -> Benchmark:
    needed = {images: f"extract {source}", _CLASS_NAMES: f"copy imagenet/{_CLASS_NAMES}"}
    return Benchmark(name, coop_name, classes, folder, images, needed, read or _read_variant)


_AIRCRAFT = "it is in data/ of https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz"
_ALL = (
    Benchmark(
        "imagenet",
        "ImageNet",
        1000,
        "imagenet",
        "images",
        {
            "images/train": "extract the training pictures of https://image-net.org, a folder for each class",
            "images/val": "extract the validation pictures of https://image-net.org, a folder for each class",
            _CLASS_NAMES: f"get it from {_DRIVE}1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF",
        },
        _read_imagenet,
    ),
    _with_split(
        "caltech101",
        "Caltech101",
        100,
        "caltech-101",
        {
            "101_ObjectCategories": (
                "extract http://www.vision.caltech.edu/Image_Datasets/Caltech101/101_ObjectCategories.tar.gz"
            )
        },
        "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN",
        torchvision="Caltech101",
        torchvision_folder="caltech101",
    ),
    _with_split(
        "oxford_pets",
        "OxfordPets",
        37,
        "oxford_pets",
        {"images": "extract https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz"},
        "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs",
        torchvision="OxfordIIITPet",
        torchvision_folder="oxford-iiit-pet",
    ),
    _with_split(
        "stanford_cars",
        "StanfordCars",
        196,
        "stanford_cars",
        {
            "cars_train": "extract http://ai.stanford.edu/~jkrause/car196/cars_train.tgz",
            "cars_test": "extract http://ai.stanford.edu/~jkrause/car196/cars_test.tgz",
        },
        "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT",
        images="",
    ),
    _with_split(
        "oxford_flowers",
        "OxfordFlowers",
        102,
        "oxford_flowers",
        {"jpg": "extract https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz"},
        "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT",
        torchvision="Flowers102",
        torchvision_folder="flowers-102",
    ),
    _with_split(
        "food101",
        "Food101",
        101,
        "food-101",
        {"images": "extract food-101.tar.gz of https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101"},
        "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl",
        torchvision="Food101",
    ),
    Benchmark(
        "fgvc_aircraft",
        "FGVCAircraft",
        100,
        "fgvc_aircraft",
        "images",
        dict.fromkeys(("images", "variants.txt", *(f"images_variant_{part}.txt" for part in _PARTS)), _AIRCRAFT),
        _read_aircraft,
        torchvision="FGVCAircraft",
        torchvision_folder="fgvc-aircraft-2013b/data",
    ),
    _with_split(
        "sun397",
        "SUN397",
        397,
        "sun397",
        {"SUN397": "extract http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz"},
        "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq",
        torchvision="SUN397",
        torchvision_folder=".",
    ),
    _with_split(
        "dtd",
        "DescribableTextures",
        47,
        "dtd",
        {"images": "extract https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz"},
        "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x",
        torchvision="DTD",
        torchvision_folder="dtd/dtd",
    ),
    _with_split(
        "eurosat",
        "EuroSAT",
        10,
        "eurosat",
        {"2750": "extract http://madm.dfki.de/files/sentinel/EuroSAT.zip"},
        "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o",
        torchvision="EuroSAT",
    ),
    _with_split(
        "ucf101",
        "UCF101",
        101,
        "ucf101",
        {"UCF-101-midframes": f"extract UCF-101-midframes.zip of {_DRIVE}10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O"},
        "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y",
    ),
    _variant(
        "imagenetv2",
        "ImageNetV2",
        1000,
        "imagenetv2",
        "imagenetv2-matched-frequency-format-val",
        "https://s3-us-west-2.amazonaws.com/imagenetv2public/imagenetv2-matched-frequency.tar.gz",
        _read_numbered,
    ),
    _variant(
        "imagenet_sketch",
        "ImageNetSketch",
        1000,
        "imagenet-sketch",
        "images",
        "the pictures of https://github.com/HaohanWang/ImageNet-Sketch",
    ),
    _variant(
        "imagenet_a",
        "ImageNetA",
        200,
        "imagenet-adversarial",
        "imagenet-a",
        "the pictures of https://github.com/hendrycks/natural-adv-examples",
    ),
    _variant(
        "imagenet_r",
        "ImageNetR",
        200,
        "imagenet-rendition",
        "imagenet-r",
        "the pictures of https://github.com/hendrycks/imagenet-r",
    ),
)
BENCHMARKS: Mapping[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}
