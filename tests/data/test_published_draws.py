"""The draws are those that CoOp's code makes, and published lists are read as they are."""

import hashlib
import json
import shutil

import numpy as np
import pytest

from prograd_fast.data import PictureSet, load_benchmark
from prograd_fast.data.published_draws import coop_draw, listed_draw
from prograd_fast.data.splits import first_half
from tests.data import layouts

# linzhiqiu/cross_modal_adaptation@ac9077ee (MIT), indices/dtd/: what CoOp's code draws, as places in the lists train
# and val of split_zhou_DescribableTextures.json. (shots, seed) -> first places, and the digest of all as JSON.
DTD = {
    (1, 1): ([8, 96, 174, 231], [13, 47, 48, 88], "a572e29c5dbd3698"),
    (2, 2): ([55, 54, 63, 65], [11, 21, 38, 35], "6fcfd4ae7ff1f234"),
    (4, 3): ([15, 37, 34, 8], [3, 19, 16, 8], "4d63453f1b7ff642"),
    (8, 1): ([8, 36, 54, 51], [17, 15, 7, 2], "d8090bc0a68cb94f"),
    (16, 2): ([55, 54, 3, 5], [15, 3, 4, 6], "204e59ca534cb6c5"),
    (16, 3): ([15, 37, 34, 8], [3, 17, 4, 10], "4a7515126b857159"),
}


def made(labels: list[int], split: list[str]) -> PictureSet:
    """Pictures that are never opened."""
    n, names = len(labels), tuple(f"class {i}" for i in range(max(labels) + 1))
    source = [bytes([i % 256]) for i in range(n)]
    return PictureSet("made", names, np.array(labels), np.array(split), np.array([""] * n), source)


@pytest.mark.parametrize(("shots", "seed"), DTD)
def test_the_pictures_that_coop_draws(shots, seed):
    """DTD has 47 classes of 60 pictures to learn from and 24 for validation, class by class in its split."""
    labels = [*np.repeat(range(47), 60).tolist(), *np.repeat(range(47), 24).tolist()]
    pictures = made(labels, ["pool"] * 47 * 60 + ["validation"] * 47 * 24)
    train, validation = coop_draw(pictures, shots, seed)
    places = [train.tolist(), (validation - 47 * 60).tolist()]
    assert len(places[1]) == 47 * min(shots, 4)
    assert (places[0][:4], places[1][:4]) == DTD[shots, seed][:2]
    assert hashlib.sha256(json.dumps(places).encode()).hexdigest()[:16] == DTD[shots, seed][2]


def test_classes_come_in_the_order_of_the_file_and_small_ones_give_all():
    """Class 2 stands first in the split, and class 0 has one picture less than wanted; the test is never drawn."""
    pictures = made([2, 0, 2, 1, 2, 1, 1, 2, 0], ["pool"] * 7 + ["test"] * 2)
    train, validation = coop_draw(pictures, 2, 1)
    assert pictures.labels[train].tolist() == [2, 2, 0, 1, 1]
    assert train[2] == 1
    assert len(validation) == 0


@pytest.mark.parametrize(
    ("shots", "seed", "message"),
    [(0, 1, "shots must be between 1"), (1, -1, "seed must be between 0"), (1, 2**32, "4294967295, got 4294967296")],
)
def test_numbers_out_of_range(shots, seed, message):
    with pytest.raises(ValueError, match=message):
        coop_draw(made([0, 1], ["pool", "pool"]), shots, seed)


@pytest.mark.parametrize(("n", "base"), [(2, 1), (101, 51), (10, 5), (1000, 500)])
def test_base_classes_are_the_first_half_rounded_up(n, base):
    found = first_half(n)
    assert found[0].tolist() == list(range(base))
    assert found[1].tolist() == list(range(base, n))
    with pytest.raises(ValueError, match="at least 2"):
        first_half(1)


@pytest.fixture
def pets(tmp_path):
    """Oxford Pets with lists for one shot and seed 3, whose paths begin with another machine's folders."""
    layouts.make_split(tmp_path, "oxford_pets")
    folder = tmp_path / "oxford_pets"
    write_list(folder, "train", [("american_bulldog_2.jpg", 1), ("Abyssinian_0.jpg", 0), ("Abyssinian_0.jpg", 0)])
    write_list(folder, "val", [("Abyssinian_3.jpg", 0)])
    return load_benchmark("oxford_pets", tmp_path)


def write_list(folder, part, pictures):
    """As FarinaMatteo/rethinking_fewshot_vlms writes it."""
    (folder / "split_fewshot").mkdir(exist_ok=True)
    lines = [
        {"_impath": f"/leonardo/oxford_pets/data/oxford_pets/images/{name}", "_label": label, "_domain": 0}
        for name, label in pictures
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "split_fewshot" / f"shot_1-seed_3_{part}.jsonl").write_text(text)


def test_a_published_list_is_taken_in_its_order(pets):
    """A class with too few pictures has one twice there."""
    train, validation = listed_draw(pets, 1, 3)
    names = [pets.source[row].name for row in (*train, *validation)]
    assert names == ["american_bulldog_2.jpg", "Abyssinian_0.jpg", "Abyssinian_0.jpg", "Abyssinian_3.jpg"]


def test_pictures_where_torchvision_puts_them(pets, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "oxford_pets", other / "oxford_pets")
    (other / "oxford-iiit-pet").mkdir()
    (other / "oxford_pets/images").rename(other / "oxford-iiit-pet/images")
    moved = load_benchmark("oxford_pets", other)
    assert [rows.tolist() for rows in listed_draw(moved, 1, 3)] == [rows.tolist() for rows in listed_draw(pets, 1, 3)]


@pytest.mark.parametrize(
    ("part", "pictures", "message"),
    [
        ("train", [("Abyssinian_4.jpg", 0)], "not among the pictures of the split's part pool"),  # a test picture
        ("val", [("Abyssinian_0.jpg", 0)], "part validation"),
        ("train", [("Abyssinian_0.jpg", 1)], "has the label 1, and 0 in the split"),
        ("train", [("Abyssinian_0.jpg", "0")], "expected an object with _impath and _label"),
    ],
)
def test_a_list_that_does_not_fit_the_split(pets, part, pictures, message):
    write_list(pets.folder / "oxford_pets", part, pictures)
    with pytest.raises(ValueError, match=message):
        listed_draw(pets, 1, 3)


def test_a_list_that_is_missing(pets):
    with pytest.raises(ValueError, match=r"shot_2-seed_3_train\.jsonl cannot be used as a list of oxford_pets"):
        listed_draw(pets, 2, 3)
    with pytest.raises(ValueError, match="sets of the benchmark"):
        listed_draw(made([0, 1], ["pool", "pool"]), 1, 1)
