"""Split folders in every usual spelling; what only looks like a split is refused, not learned as classes."""

import re

import pytest

from prograd_fast.data import load_folder
from prograd_fast.data.split_folders import part_named
from tests.data.test_folder import make

SPELLINGS = {
    "pool": ["train", "Train", "TRAINING", "trn", "training_set", "train-data", "TrainImages", "train2017", "01_train"],
    "validation": ["val", "valid", "Validation", "dev", "val_set", "VAL2017", "development"],
    "test": ["test", "Tests", "TESTING", "test_set", "test-images", "images_test", "tst"],
}
CLASSES = ["trainer", "train station", "testament", "valley", "device", "dev board", "test tube", "strain", "validator"]


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, names in SPELLINGS.items() for name in names])
def test_usual_spellings(part, name):
    assert part_named(name) == part


@pytest.mark.parametrize("name", CLASSES)
def test_classes_that_begin_alike(name):
    assert part_named(name) is None


@pytest.mark.parametrize(
    ("train", "test", "val"),
    [
        ("Train", "Test", None),
        ("training", "testing", None),
        ("TRAIN", "TEST", "Valid"),
        ("trainset", "tests", "validation"),
        ("trn", "tst", "dev"),
        ("tr", "te", "val"),
    ],
)
def test_a_split_in_any_spelling(tmp_path, train, test, val):
    files = [f"{folder}/{name}/{folder}.png" for folder in (train, test, val) if folder for name in ("a", "b")]
    found = load_folder(make(tmp_path, *files))
    assert found.class_names == ("a", "b")
    parts = {path.parts[-3]: str(part) for path, part in zip(found.source, found.split, strict=True)}
    assert parts == {train: "pool", test: "test", **({val: "validation"} if val else {})}


@pytest.mark.parametrize(
    "folders",
    [
        ("train", "valid"),
        ("train", "validation"),
        ("Train",),
        ("test", "dev"),
        ("train", "eval"),
        ("train", "test", "holdout"),
        ("train", "car", "plane"),
        ("train", "Training", "test"),
        ("train1", "train2", "test"),
        ("fold1", "fold2", "fold3"),
        ("split_0", "split_1"),
    ],
)
def test_what_looks_like_a_split_and_is_none(tmp_path, folders):
    files = [f"{folder}/{name}/{i}.png" for folder in folders for name in "ab" for i in range(3)]
    with pytest.raises(ValueError, match=re.escape(f"found the folders {', '.join(sorted(folders))}; ")) as refused:
        load_folder(make(tmp_path, *files))
    assert "expected train/ and test/" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_split_inside_of_a_class(tmp_path):
    files = [f"{name}/{part}/{i}.png" for name in ("cat", "dog") for part in ("Train", "Test") for i in range(3)]
    with pytest.raises(
        ValueError, match=r"cat: found the folders Test, Train in a class folder; expected .*/train/cat"
    ):
        load_folder(make(tmp_path, *files))


@pytest.mark.parametrize(
    "folders",
    [
        ("cats_test", "cats_train", "dogs_test", "dogs_train"),
        ("X_test", "X_train"),
        ("Test Cats", "bird", "train-cats"),
        ("testA", "testB", "trainA", "trainB"),
        ("birdsVal", "birds_Train"),
    ],
)
def test_parts_in_the_names_of_classes(tmp_path, folders):
    with pytest.raises(ValueError, match="look like parts of one class or set; expected train/ and test/"):
        load_folder(make(tmp_path, *(f"{folder}/{i}.png" for folder in folders for i in range(3))))


@pytest.mark.parametrize(
    "folders", [("steam train", "test tube"), ("dev board", "train station"), ("train bus", "bus")]
)
def test_classes_with_such_a_word(tmp_path, folders):
    assert set(load_folder(make(tmp_path, *(f"{f}/{f}{i}.png" for f in folders for i in range(3)))).class_names) == set(
        folders
    )
