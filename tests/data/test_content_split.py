"""A picture's part follows from its content alone: more pictures, other names and other machines change nothing."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from prograd_fast import data
from prograd_fast.data import PictureSet, load_folder
from prograd_fast.data.content_split import split_by_content
from tests.data.test_folder import make

N = 60


def digests(n: int, salt: str = "") -> list[str]:
    return [hashlib.sha256(f"{salt}{i}".encode()).hexdigest() for i in range(n)]


def parts(root: Path, **options) -> dict[str, str]:
    """Content of each picture -> its part."""
    found = load_folder(root, **options)
    return {found.digest(i): str(found.split[i]) for i in range(len(found))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "set", *[f"{name}/{i}.ppm" for name in "abc" for i in range(N // 3)])


def renamed(root: Path) -> Path:
    for i, file in enumerate(sorted(root.rglob("*.ppm"))):
        file.rename(file.with_name(f"other{-i}.PGM"))
    return root


def deeper(root: Path) -> Path:
    for file in sorted((root / "a").iterdir())[::2]:
        (root / "a" / "more").mkdir(exist_ok=True)
        file.rename(root / "a" / "more" / file.name)
    return root


def grown(root: Path) -> Path:
    return make(root, *[f"{name}/new{i}.ppm" for name in "abc" for i in range(7)], "d/0.ppm", "d/1.ppm")


def shrunk(root: Path) -> Path:
    for file in sorted((root / "b").iterdir())[::3]:
        file.unlink()
    return root


def moved(root: Path) -> Path:
    return Path(shutil.move(root, root.parent / "elsewhere"))


@pytest.mark.parametrize("change", [renamed, deeper, grown, shrunk, moved])
def test_no_change_of_a_folder_moves_a_picture(folder, change):
    before = parts(folder)
    after = parts(change(folder))
    assert {digest: after[digest] for digest in before if digest in after} == {
        digest: part for digest, part in before.items() if digest in after
    }
    assert set(before.values()) == {"pool", "validation", "test"}


@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
def test_shares(share):
    split = split_by_content(digests(2000), np.zeros(2000, np.int64), share)
    for part, expected in (("test", share), ("validation", 0.1), ("pool", 0.9 - share)):
        assert abs(np.mean(split == part) - expected) < 0.03, part


def test_a_larger_share_only_adds_test_pictures():
    labels = np.zeros(500, np.int64)
    small, large = (set(np.flatnonzero(split_by_content(digests(500), labels, s) == "test")) for s in (0.3, 0.5))
    assert small < large


def test_folds_test_each_picture_once(folder):
    found = [parts(folder, fold=(k, 3)) for k in range(3)]
    assert all(sum(fold[digest] == "test" for fold in found) == 1 for digest in found[0])
    assert {part for fold in found for part in fold.values()} == {"pool", "test"}


@pytest.mark.parametrize("u", [(0.1, 0.2), (0.8, 0.9), (0.41, 0.45), (0.41, 0.9), (0.1, 0.41), (0.1, 0.1, 0.2)])
def test_small_classes_keep_something_to_learn_from_and_to_test_on(u):
    """Whatever their hashes are; equal pictures stay together."""
    own = [f"{int(value * 2**256):064x}" for value in u]
    split = split_by_content(own, np.zeros(len(u), np.int64))
    assert split[np.argmax(u)] == "pool"
    assert all(split[np.array(u) == min(u)] == "test")


@pytest.mark.parametrize("share", [0, -1, 0.9, 1, float("nan")])
def test_no_such_share(share):
    with pytest.raises(ValueError, match=r"test share: expected more than 0 and less than 0\.9"):
        split_by_content(digests(2), np.zeros(2, np.int64), share)


def test_another_fold_is_that_of_the_folder_and_reads_no_file_again(folder, monkeypatch):
    first, wanted = load_folder(folder, fold=(0, 3)), [load_folder(folder, fold=(k, 3)) for k in range(3)]
    monkeypatch.setattr(PictureSet, "_stream", None)
    for k, other in enumerate(wanted):
        found = data.with_fold(first, (k, 3))
        assert found.split.tolist() == other.split.tolist()
        assert found.split_by == other.split_by == {"fold": [k, 3]}


def test_folds_of_small_classes():
    """Two pictures, the least: in each fold one is there to learn from; folds are as even as can be."""
    names, labels = digests(30), np.repeat(np.arange(15), 2)
    found = [split_by_content(names, labels, fold=(k, 5)) for k in range(5)]
    assert [np.sum(split == "test") for split in found] == [6] * 5
    assert np.sum([split == "test" for split in found], 0).tolist() == [1] * 30
    for split in found:
        assert all("pool" in split[labels == label] for label in range(15))
    same = [names[0], names[0], names[1]]  # a picture twice is in one fold
    assert split_by_content(same, np.zeros(3, np.int64), fold=(0, 2))[:2].tolist() in (["test"] * 2, ["pool"] * 2)
    with pytest.raises(ValueError, match="2 pictures are too few for 3 folds"):
        split_by_content(names[:2], np.zeros(2, np.int64), fold=(2, 3))


@pytest.mark.parametrize("fold", [(2, 2), (-1, 3), (0, 1), (0, 0)])
def test_no_such_fold(fold):
    with pytest.raises(ValueError, match="fold: expected"):
        split_by_content(digests(2), np.zeros(2, np.int64), fold=fold)


@pytest.mark.parametrize("options", [{"fold": (0, 2)}, {"test_share": 0.2}])
def test_a_split_that_is_there_is_kept(tmp_path, options):
    make(tmp_path, "train/a/0.png", "train/b/0.png", "test/a/1.png", "test/b/1.png")
    for name in ("emoji", tmp_path):
        with pytest.raises(ValueError, match="its own split"):
            data.load(name, **options)


def test_a_folder_that_nothing_is_learned_from_is_for_testing_whole(tmp_path):
    one = make(tmp_path / "one", "a/0.png")
    assert load_folder(one, whole=True).split.tolist() == ["test"]
    split = make(tmp_path / "split", "train/a/0.png", "train/b/0.png", "test/a/1.png", "test/b/1.png")
    assert sorted(load_folder(split, whole=True).split) == ["pool", "pool", "test", "test"]  # its own test part


def test_a_fingerprint_is_that_of_the_content(folder, tmp_path):
    first = load_folder(folder).fingerprint()
    assert load_folder(renamed(moved(folder))).fingerprint() == first
    folder = tmp_path / "elsewhere"
    (folder / "classes.txt").write_text("b\talpha\na\tb\nc\tc\n")
    names = load_folder(folder).fingerprint()
    (folder / "classes.txt").unlink()
    shares = load_folder(folder, test_share=0.2).fingerprint()
    next((folder / "a").iterdir()).write_bytes(b"P6 1 1 255\nabc")
    assert len({first, names, shares, load_folder(folder).fingerprint()}) == 4


def test_a_file_that_changes_in_use_is_refused(folder):
    found = load_folder(folder)
    found.source[0].write_bytes(b"P6 1 1 255\nabc")
    with pytest.raises(ValueError, match="changed while it was in use; run the command again"):
        found.open(0)


def test_all_unreadable_files_are_named_at_once(folder):
    for i in (1, 2):
        (folder / "a" / f"{i}.ppm").unlink()
        (folder / "a" / f"{i}.ppm").symlink_to(folder / "nowhere")
    with pytest.raises(ValueError, match=rf"2 of {N} pictures cannot be read: .*a/1\.ppm.*a/2\.ppm"):
        load_folder(folder)
    told: list[str] = []
    assert len(load_folder(folder, unreadable=told)) == N - 2
    assert len(told) == 2
