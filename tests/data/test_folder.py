"""A user's folder of pictures as a set: layouts, splits, readable names, and what is refused."""

import zlib
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prograd_fast.data import PictureSet, load_folder


def make(root: Path, *files: str) -> Path:
    """Pictures of different content, the same on every machine: a split goes by the bytes."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"P6 4 4 255\n" + np.random.RandomState(zlib.crc32(file.encode())).bytes(48))
    return root


def pictures_of(found: PictureSet, split: str, name: str) -> list[str]:
    label = found.class_names.index(name)
    chosen = np.flatnonzero((found.split == split) & (found.labels == label))
    return [Path(found.source[i]).name for i in chosen]  # type: ignore[arg-type]


def test_one_folder_per_class(tmp_path):
    files = [f"{name}/{i:02}.png" for name in ("sea_animal", "bird") for i in range(10)]
    found = load_folder(make(tmp_path / "mine", *files))
    assert found.name == "mine"
    assert found.class_names == ("bird", "sea animal")  # sorted folders, underscores as spaces
    for name in found.class_names:
        parts = [pictures_of(found, split, name) for split in ("pool", "validation", "test")]
        assert len(parts[0]) >= 1 <= len(parts[2])
        assert sorted(chain(*parts)) == [f"{i:02}.png" for i in range(10)]  # every picture once
    assert found.open(0).size == (4, 4)


def test_split_is_the_same_on_every_machine(tmp_path):
    # written down, so that a change of the split does not pass unseen: earlier runs would no longer compare
    found = load_folder(make(tmp_path, *[f"{name}/{i}.png" for name in "ab" for i in range(5)]))
    assert (pictures_of(found, "test", "a"), pictures_of(found, "test", "b")) == (["0.png", "3.png"], ["1.png"])


def test_own_split(tmp_path):
    files = ["train/a/0.png", "train/a/1.png", "train/b/2.png", "test/a/3.png", "test/b/4.png", "val/b/5.png"]
    found = load_folder(make(tmp_path, *files))
    assert found.class_names == ("a", "b")
    assert pictures_of(found, "pool", "a") == ["0.png", "1.png"]
    assert pictures_of(found, "test", "a") == ["3.png"]
    assert pictures_of(found, "validation", "a") == []
    assert pictures_of(found, "validation", "b") == ["5.png"]


def test_what_is_a_picture(tmp_path):
    make(tmp_path, "a/1.PNG", "a/deeper/2.jpg", "a/.hidden.png", "a/.cache/3.png", ".git/4.png", "b/5.webp", "b/6.bmp")
    (tmp_path / "a/notes.txt").write_text("no picture")
    (tmp_path / "README.md").write_text("no class")
    found = load_folder(tmp_path)
    assert [Path(file).name for file in found.source] == ["1.PNG", "2.jpg", "5.webp", "6.bmp"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "lines",
    [
        "n01\tgolden retriever\nn02\ttabby cat\n",
        "n02 tabby cat\n\n  n01   golden retriever",  # any order, blank lines, spaces
    ],
)
def test_readable_names(tmp_path, lines):
    make(tmp_path, *[f"{name}/{i}.png" for name in ("n01", "n02") for i in range(2)])
    (tmp_path / "classes.txt").write_text(lines)
    assert load_folder(tmp_path).class_names == ("golden retriever", "tabby cat")


def test_readable_names_of_folders_with_spaces_need_a_tab(tmp_path):
    make(tmp_path, *[f"{name}/{i}.png" for name in ("my dog", "cat") for i in range(2)])
    (tmp_path / "classes.txt").write_text("my dog\tgolden retriever\ncat\ttabby cat\n")
    assert load_folder(tmp_path).class_names == ("tabby cat", "golden retriever")


@pytest.mark.parametrize(
    ("files", "names", "message"),
    [
        ([], None, "0 class folder"),
        (["0.png", "1.png"], None, "0 class folder"),  # pictures without a class
        (["a/0.png", "a/1.png"], None, "1 class folder"),
        (["a/0.png", "a/1.png", "b/readme.png/0.txt"], None, "b: no picture"),
        (["a/0.png", "a/1.png", "b/0.png"], None, "'b' holds one picture"),
        (["a/0.png", "a/1.png", "b/0.png", "b/deeper/0.png"], None, "'b' holds 2 pictures, all the same"),
        (["set/a/0.png", "set/b/1.png"], None, "found 1 class folder.*/set holds the class folders, give that"),
        (["train/a/0.png", "train/b/0.png"], None, "found the folders train; expected train/ and test/"),
        (["train/a/0.png", "val/a/0.png"], None, "found the folders train, val; expected"),
        (["train/a/0.png", "test/a/0.png", "c/0.png"], None, "found the folders c, test, train"),
        (["train/a/0.png", "train/b/0.png", "test/a/0.png"], None, "'b' is not in both train/ and test/"),
        (["train/a/0.png", "test/a/0.png", "test/c/0.png"], None, "'c' is not in both"),
        (["train/a/0.png", "test/a/0.png", "val/c/0.png"], None, "'c' is not in both train/ and val/"),
        (["a/0.png", "a/1.png", "b/0.png", "b/1.png"], "a cat\n", "'b' has 0 lines"),
        (["a/0.png", "a/1.png", "b/0.png", "b/1.png"], "a cat\nb dog\na cow\n", "'a' has 2 lines"),
        (["a/0.png", "a/1.png", "b/0.png", "b/1.png"], "a cat\nb\n", "cannot use the line 'b'"),
        (["a/0.png", "a/1.png", "b/0.png", "b/1.png"], "cat\ndog\n", "cannot use the line 'cat'"),
        (["a/0.png", "a/1.png", "b/0.png", "b/1.png"], "a cat\nc dog\n", "cannot use the line 'c dog'"),
        (["a/0.png", "a/1.png", "b/0.png", "b/1.png"], "a cat\nb cat\n", "'a' and 'b' are both called 'cat'"),
        # folders of other names, whose readable names enter the same prompt
        (["a/0.png", "a/1.png", "b/0.png", "b/1.png"], "a same thing\nb same_thing\n", "'a' and 'b' are both called"),
        (["a_b/0.png", "a_b/1.png", "a b/0.png", "a b/1.png"], None, "'a b' and 'a_b' are both called 'a b'"),
    ],
)
def test_errors_say_what_is_wrong(tmp_path, files, names, message):
    tmp_path.joinpath("set").mkdir()
    for file in files:
        path = tmp_path / "set" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("same" if "b/0" in file or "deeper" in file else file)
    if names is not None:
        (tmp_path / "set" / "classes.txt").write_text(names)
    with pytest.raises(ValueError, match=message) as caught:
        load_folder(tmp_path / "set")
    assert str(tmp_path / "set") in str(caught.value)


def two_classes(root: Path) -> Path:
    return make(root, *[f"{name}/{i}.png" for name in "ab" for i in range(2)])


def test_readable_names_with_a_byte_order_mark(tmp_path):
    (two_classes(tmp_path) / "classes.txt").write_text("a\tcat\nb\tdog\n", encoding="utf-8-sig")
    assert load_folder(tmp_path).class_names == ("cat", "dog")


def test_readable_names_in_another_encoding(tmp_path):
    (two_classes(tmp_path) / "classes.txt").write_text("a Bär\nb Vogel\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"classes\.txt is not UTF-8 .*save it as UTF-8"):
        load_folder(tmp_path)


def test_folder_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(two_classes(tmp_path))
    assert load_folder(".").folder == tmp_path.resolve()


def colour(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return image.getpixel((x, y))  # type: ignore[return-value]


def opened(root: Path, file: str) -> Image.Image:
    found = load_folder(root)
    return found.open([str(path.relative_to(root)) for path in found.source].index(file))  # type: ignore[union-attr]


def test_transparent_pictures_are_on_white(tmp_path):
    two_classes(tmp_path)
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    picture.putpixel((0, 0), (0, 0, 0, 0))  # what drawing programs write under a transparent ground: black
    picture.save(tmp_path / "a/rgba.png")
    Image.new("L", (1, 1), 7).save(tmp_path / "a/grey.png", transparency=7)
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([0, 0, 0])
    palette.save(tmp_path / "a/palette.png", transparency=0)
    assert colour(opened(tmp_path, "a/rgba.png"), 0, 0) == (255, 255, 255)
    assert colour(opened(tmp_path, "a/rgba.png"), 1, 0) == (255, 0, 0)
    assert colour(opened(tmp_path, "a/grey.png"), 0, 0) == (255, 255, 255)
    assert colour(opened(tmp_path, "a/palette.png"), 0, 0) == (255, 255, 255)


def test_photos_are_turned_upright(tmp_path):
    two_classes(tmp_path)
    lying = Image.new("RGB", (32, 16), "white")
    lying.paste("black", (0, 0, 16, 16))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: the first row is the right side
    lying.save(tmp_path / "a/photo.jpg", exif=exif)
    upright = opened(tmp_path, "a/photo.jpg")
    assert upright.size == (16, 32)
    assert max(colour(upright, 8, 4)) < 10  # the left half is now the top
    assert min(colour(upright, 8, 28)) > 245


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled(tmp_path, suffix):
    two_classes(tmp_path)
    levels = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    if suffix == "pgm":  # most significant byte first
        (tmp_path / "a/scan.pgm").write_bytes(b"P5 4 1 65535\n" + levels.astype(">u2").tobytes())
    else:
        Image.fromarray(levels).save(tmp_path / f"a/scan.{suffix}")
    image = opened(tmp_path, f"a/scan.{suffix}")
    assert [colour(image, x, 0)[0] for x in range(4)] == [0, 1, 128, 255]


def test_no_such_folder(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        load_folder(tmp_path / "nowhere")


def test_names_in_a_file_of_any_case(tmp_path):
    (make(tmp_path, *(f"{name}/{i}.png" for name in "ab" for i in range(3))) / "Classes.TXT").write_text(
        "a cat\nb dog\n"
    )
    assert load_folder(tmp_path).class_names == ("cat", "dog")


@pytest.mark.parametrize("files", [("train/classes.txt",), ("classes.txt", "Classes.txt")])
def test_names_in_another_place_are_not_passed_over(tmp_path, files):
    make(tmp_path, *(f"{part}/{name}/{i}.png" for part in ("train", "test") for name in "ab" for i in range(3)))
    for file in files:
        (tmp_path / file).write_text("a cat\nb dog\n")
    if len(list(tmp_path.rglob("[Cc]lasses.txt"))) == len(files):  # not where a disk takes both names for one
        with pytest.raises(ValueError, match=r"expected one classes\.txt, beside the folders"):
            load_folder(tmp_path)
