"""Which files of a folder count as pictures, and that the others are told."""

import os
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from prograd_fast.data import load_folder
from prograd_fast.data.walk import describe_ignored, pictures_in, subfolders
from tests.cli.support import run_here
from tests.data.test_folder import make

SYSTEM = ["@eaDir", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "#recycle", "lost+found"]
READ = {
    "jfif": "JPEG",
    "jpe": "JPEG",
    "JPG": "JPEG",
    "avif": "AVIF",
    "tga": "TGA",
    "jp2": "JPEG2000",
    "j2k": "JPEG2000",
}
READ |= {
    "dib": "BMP",
    "pcx": "PCX",
    "ico": "ICO",
    "pbm": "PPM",
    "apng": "PNG",
    "heic": "HEIF",
    "HEIF": "HEIF",
    "sgi": "SGI",
}


@pytest.mark.parametrize("suffix", READ)
def test_formats_by_suffix(tmp_path, suffix):
    """The whole way: found in the folder, and read with the colours that were written."""
    pytest.importorskip("pillow_heif")
    for name, colour in (("a", (200, 30, 40)), ("b", (20, 160, 60))):
        (tmp_path / name).mkdir()
        for i in range(2):
            picture = Image.new("RGB", (32, 32), colour)
            picture.putpixel((0, 0), (255 * i, 255 * i, 255 * i))
            picture.convert("1" if suffix == "pbm" else "RGB").save(tmp_path / name / f"{i}.{suffix}", READ[suffix])
    found = load_folder(tmp_path)
    assert (len(found), found.ignored) == (4, {})
    if suffix != "pbm":
        assert np.abs(np.asarray(found.open(0))[8:24, 8:24].astype(int) - (200, 30, 40)).max() < 12


@pytest.mark.parametrize("name", [*SYSTEM, *map(str.upper, SYSTEM)])
@pytest.mark.parametrize("where", ["", "a", "a/deeper"])
def test_system_folders_are_no_pictures(tmp_path, name, where):
    make(tmp_path, *[f"{label}/{i}.png" for label in "ab" for i in range(2)], "a/deeper/2.png")
    make(tmp_path / where / name, "x/0.png", "1.png")
    found = load_folder(tmp_path)
    assert len(found) == 5
    assert found.ignored == {name: 2}


@pytest.mark.parametrize("name", ["Thumbs.db", "desktop.ini", ".DS_Store", "._0.png", "ehthumbs.db"])
def test_system_files_are_not_worth_a_word(tmp_path, name):
    make(tmp_path, *[f"{label}/{i}.png" for label in "ab" for i in range(2)])
    (tmp_path / "a" / name).write_text("x")
    (tmp_path / name).write_text("x")
    found = load_folder(tmp_path)
    assert (len(found), found.ignored) == (4, {})


def test_everything_else_is_told(tmp_path, capfd, monkeypatch):
    make(
        tmp_path,
        *[f"{label}/{i}.png" for label in "ab" for i in range(3)],
        "a/.thumbnails/3.png",
        "b/.x.jpg",
        "loose.jpg",
    )
    for name in ("a/film.MOV", "a/film2.mov", "b/README"):
        (tmp_path / name).write_text("x")
    assert load_folder(tmp_path).ignored == {
        ".mov": 2,
        "hidden pictures": 2,
        "files without a suffix": 1,
        "pictures outside the class folders": 1,
    }
    run_here(monkeypatch, "data", "check", tmp_path)
    line = "ignored 6 files: 2 .mov, 2 hidden pictures, 1 files without a suffix, 1 pictures outside the class folders"
    assert capfd.readouterr().err.count(f"{tmp_path}: {line}") == 1


def test_a_remedy_is_told():
    told = describe_ignored(Counter({".heic": 34, ".txt": 1, "x": 0}))
    assert told == 'ignored 35 files: 34 .heic (pip install "pillow-heif>=1.8"), 1 .txt'
    assert describe_ignored({}) == ""


def test_a_class_of_unknown_files_alone_tells_them(tmp_path):
    make(tmp_path, "a/0.cr2", "a/1.cr2")
    with pytest.raises(ValueError, match=r"a: no picture; expected .*; ignored 2 files: 2 \.cr2"):
        pictures_in(tmp_path / "a", Counter())


def test_linked_folders_are_followed(tmp_path):
    make(tmp_path, "set/a/0.png", "set/a/1.png", "set/b/0.png", "set/b/1.png", "elsewhere/2.png", "c/0.png", "c/1.png")
    (tmp_path / "set/a/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/c").symlink_to(tmp_path / "c")
    found = load_folder(tmp_path / "set")
    assert (len(found), found.class_names, found.ignored) == (7, ("a", "b", "c"), {})


def test_links_in_a_circle_end(tmp_path):
    make(tmp_path, "a/0.png", "a/1.png", "b/0.png", "b/1.png")
    (tmp_path / "a/self").symlink_to(tmp_path / "a")
    found = load_folder(tmp_path)
    assert (len(found), found.ignored) == (4, {"folders read before": 1})


@pytest.mark.parametrize("link", ["a/more", "c", "a/x.jpg"])
def test_dangling_links_are_refused(tmp_path, link):
    make(tmp_path, "a/0.png", "a/1.png", "b/0.png", "b/1.png")
    (tmp_path / link).symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=rf"{link}: (the link leads nowhere|No such file)"):
        load_folder(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every folder")
def test_a_closed_folder_is_refused(tmp_path):
    make(tmp_path, "a/0.png", "a/inner/1.png")
    (tmp_path / "a/inner").chmod(0)
    with pytest.raises(ValueError, match=r"a/inner cannot be read: Permission denied"):
        pictures_in(tmp_path / "a", Counter())


def test_an_unreadable_folder_is_named(tmp_path, monkeypatch):
    def fails(path):
        raise PermissionError(13, "Permission denied", str(path))

    make(tmp_path, "a/0.png")
    monkeypatch.setattr(os, "scandir", fails)
    with pytest.raises(ValueError, match="a cannot be read: Permission denied"):
        pictures_in(tmp_path / "a", Counter())
    monkeypatch.setattr("pathlib.Path.iterdir", fails)
    with pytest.raises(ValueError, match="cannot be read: Permission denied"):
        subfolders(tmp_path, Counter())
