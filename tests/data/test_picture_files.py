"""Files that call themselves pictures: read, or refused with one line; no other program, no endless read, no bomb."""

import os
import resource
import socket
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from prograd_fast.data import PictureSet, decode, load_folder, pictures
from tests.cli.support import fail
from tests.conftest import draw_shapes
from tests.fuzz.pictures import FORMATS
from tests.paths import REPOSITORY


def set_of(*files: Path) -> PictureSet:
    n = len(files)
    return PictureSet("mine", ("a",), np.zeros(n, np.int64), np.array(["test"] * n), np.array([""] * n), list(files))


def refusal(file: Path) -> str:
    """Why a file is not read; the line names it."""
    with pytest.raises(ValueError, match="cannot read") as refused:
        set_of(file).open(0)
    line = str(refused.value)
    assert str(file) in line
    assert line.endswith("replace or remove it")
    return line


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".eps"])
def test_no_other_program_is_started(tmp_path, monkeypatch, suffix):
    ghost = tmp_path / "bin" / "gs"
    ghost.parent.mkdir()
    ghost.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    ghost.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ghost.parent}:{os.environ['PATH']}")
    file = tmp_path / f"x{suffix}"
    Image.new("RGB", (4, 4)).save(file, "EPS")
    assert "not a known picture format (JPEG, PNG" in refusal(file)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["ICO", "DDS", "TGA", "PCX", "SGI", "ICNS"])
def test_formats_of_few_first_bytes_are_not_guessed(tmp_path, kind):
    file = tmp_path / "x.png"
    Image.new("RGB", (16, 16)).save(file, kind)
    refusal(file)


@pytest.mark.parametrize(
    "kind", ["pipe", "device", "folder", "socket", "proc", "link to a device", "dangling", "empty"]
)
def test_only_regular_files_are_read(tmp_path, kind):
    file = tmp_path / "x.png"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(file))
    elif kind == "folder":
        file.mkdir()
    elif kind == "empty":
        file.touch()
    elif kind == "device":
        file = Path("/dev/zero")
    else:
        file.symlink_to({"proc": "/proc/self/mem", "link to a device": "/dev/zero", "dangling": tmp_path / "no"}[kind])
    refusal(file)


def test_a_pipe_in_a_class_is_not_passed_over(tmp_path, clip_dir, capfd, monkeypatch):
    data = draw_shapes(tmp_path / "shapes", per_class=2)
    os.mkfifo(data / "red_circle" / "pipe.png")
    arguments = ["--data", data, "--out", tmp_path / "run", "--model", f"local-dir:{clip_dir}"]
    assert "pipe.png: not a regular file" in fail(capfd, monkeypatch, "train", *arguments)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    file = tmp_path / "x.png"
    file.touch()
    os.truncate(file, pictures.MOST_BYTES + 1)  # takes no room on the disk
    assert "expected 268435456 at most" in refusal(file)


def bomb(kind: str, side: int) -> bytes:
    """A small file of very many pixels."""
    stream = BytesIO()
    if kind == "PNG":
        head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(side * 100), 9)), (b"IEND", b"")]
        packed = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
        return b"\x89PNG\r\n\x1a\n" + b"".join(packed)
    if kind == "PPM":
        return b"P4 %d %d\n" % (side, side)
    Image.new("RGB", (8, 8)).save(stream, kind)
    content = stream.getvalue()
    return {
        "GIF": lambda: content[:6] + struct.pack("<HH", side, side) + content[10:],
        "BMP": lambda: content[:18] + struct.pack("<ii", side, side) + content[26:],
        "JPEG": lambda: content.replace(b"\x08\0\x08\0\x08\x03", b"\x08" + struct.pack(">HH", side, side) + b"\x03"),
    }[kind]()


@pytest.mark.parametrize("side", [18_000, 30_000, 65_000])
@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "PPM", "JPEG"])
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, kind, side, recwarn):
    file = tmp_path / "x.png"
    file.write_bytes(bomb(kind, side))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = refusal(file)
    # a JPEG could be decoded at an eighth of its size, but most of this one is missing
    assert (
        f"bytes are too few for {side} x {side}" in line if kind == "JPEG" else f"{side} x {side} pixels take" in line
    )
    assert (
        kind == "JPEG" or "expected 1.2 GB at most; make it smaller, or allow more with PROGRAD_FAST_DECODE_GB=" in line
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB
    assert not recwarn.list
    assert Image.MAX_IMAGE_PIXELS is not None


def test_a_text_that_unpacks_to_very_much(tmp_path):
    text = b"x\0\0" + zlib.compress(bytes(2**27), 9)
    content = bomb("PNG", 4)
    at = content.index(b"IDAT") - 4
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    (tmp_path / "x.png").write_bytes(content[:at] + chunk + content[at:])
    refusal(tmp_path / "x.png")


def test_large_photos_and_scans_are_read(tmp_path):
    Image.new("L", (12_000, 9000), 7).save(tmp_path / "photo.jpg")  # 108 million pixels
    Image.new("1", (7016, 9921)).save(tmp_path / "scan.png")  # A3 at 600 dots per inch
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        photo, scan = (set_of(tmp_path / name).open(0) for name in ("photo.jpg", "scan.png"))
    assert (photo.size, photo.getpixel((0, 0))) == ((12_000, 9000), (7, 7, 7))
    assert scan.size == (7016, 9921)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I", "I;16"])
@pytest.mark.parametrize("strip", [500, 2**22])
def test_on_white_is_what_it_was(monkeypatch, mode, strip):
    monkeypatch.setattr(decode, "STRIP", strip)
    base = Image.fromarray(np.random.RandomState(0).randint(0, 256, (67, 45, 4), np.uint8))
    image = base.convert("L").convert(mode) if mode.startswith("I") else base.convert(mode)
    whole = image
    if mode.startswith("I"):
        whole = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(whole.convert("RGBA"))
    assert decode.on_white(image).tobytes() == ground.convert("RGB").tobytes()


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pictures_of_32_bits_are_refused(tmp_path, kind):
    """Pillow would cut them off at 255: a picture with numbers from 0 to 1 would be black."""
    file = tmp_path / "a.tif"
    Image.fromarray(np.arange(48).reshape(6, 8).astype(kind)).save(file)
    assert "nothing tells which number is white; save it with 8 or 16 bits" in refusal(file)


def test_16_bit_grey_is_white_where_it_is_transparent(tmp_path):
    grey = np.arange(48, dtype=np.uint16).reshape(6, 8) * 257
    Image.fromarray(grey).save(tmp_path / "a.png", transparency=0)
    found = np.asarray(set_of(tmp_path / "a.png").open(0))
    expected = np.where(grey == 0, 255, grey // 257)
    assert np.array_equal(found, np.stack([expected] * 3, -1))


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_upright_as_pillow_does_it(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "x.png"
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (5, 9, 3), np.uint8)).save(file, kind, exif=exif)
    with Image.open(file) as image:
        expected = ImageOps.exif_transpose(image)
    assert set_of(file).open(0).tobytes() == expected.convert("RGB").tobytes()


@pytest.mark.parametrize(
    "entry", [b"\x1a\x01\x02\0\x05\0\0\0", b"\x0f\x01\x05\0\x01\0\0\0", b"\x12\x01\x0c\0\xff\xff\0\0"]
)
def test_odd_exif_data(tmp_path, entry):
    """A resolution in letters, a maker who is a number: beside them the orientation that is looked for."""
    upright = b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    data = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + entry + b"\x26\0\0\0" + upright + bytes(4) + b"72/1\0\0\0\0\x02\0\0\0"
    stream = BytesIO()
    Image.new("RGB", (6, 4)).save(stream, "JPEG")
    content = stream.getvalue()
    file = tmp_path / "x.jpg"
    file.write_bytes(content[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + content[2:])
    try:
        assert set_of(file).open(0).mode == "RGB"
    except ValueError:
        refusal(file)


def test_only_the_first_of_several_pictures_counts(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        frames[0].save(tmp_path / "x.gif", kind, save_all=True, append_images=frames[1:])
        red, _, blue = set_of(tmp_path / "x.gif").open(0).getpixel((4, 4))
        assert red > 200 > 50 > blue, kind


@pytest.mark.parametrize("kind", FORMATS)
def test_cut_off_anywhere(tmp_path, kind, capfd):
    stream = BytesIO()
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (19, 23, 3), np.uint8)).save(stream, kind)
    content = stream.getvalue()
    for i, end in enumerate(np.linspace(0, 0.9 * len(content), 40).astype(int)):
        file = tmp_path / f"{i}.png"
        file.write_bytes(content[:end])
        if kind != "TIFF" or end < 8:  # a TIFF's directory may be in front, and its last strip missing in part
            refusal(file)
    assert capfd.readouterr() == ("", "")  # libtiff has things to say


@pytest.mark.parametrize("error", [SyntaxError, MemoryError, OverflowError, RecursionError, AttributeError, zlib.error])
def test_whatever_a_decoder_raises(tmp_path, monkeypatch, error):
    file = tmp_path / "x.png"
    Image.new("RGB", (4, 4)).save(file)

    def fails(self):
        raise error("odd")

    monkeypatch.setattr(Image.Image, "getexif", fails)
    assert f"{error.__name__}: odd" in refusal(file)


def test_libtiff_is_silent(tmp_path, capfd):
    """libtiff writes to stderr from C code, past every Python stream."""
    stream = BytesIO()
    Image.new("L", (64, 64)).save(stream, "TIFF", compression="tiff_deflate")
    content = bytearray(stream.getvalue())
    at = content.index(b"\x78\x9c") if b"\x78\x9c" in content else 12
    content[at + 2 : at + 6] = b"\xff" * 4
    (tmp_path / "x.tif").write_bytes(content)
    refusal(tmp_path / "x.tif")
    assert capfd.readouterr() == ("", "")


def test_a_folder_with_every_format(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for kind, suffix in FORMATS.items():
            Image.new("RGB", (4, 4), "red").save(tmp_path / label / f"x.{suffix}", kind)
    found = load_folder(tmp_path)
    assert [found.open(i).size for i in range(len(found))] == [(4, 4)] * 14


CASES = sorted((Path(__file__).parent / "exif").glob("*.jpg"))


@pytest.mark.parametrize("case", CASES, ids=[case.stem for case in CASES])
def test_photos_with_one_odd_entry_are_upright(case):
    """64 x 48 pixels, to be turned by a quarter."""
    assert set_of(case).open(0).size == (48, 64)


@pytest.mark.parametrize("kind", range(17))
@pytest.mark.parametrize("tag", [0x0112, 0x010F, 0x011A, 0x0128, 0x8769, 0x8825, 0xA005, 0x927C, 0x014A])
def test_any_entry_of_any_kind(tmp_path, tag, kind):
    """Right or wrong counts and values beside the orientation: upright, or one line."""
    for i, count in enumerate((0, 1, 2, 1000, 2**31)):
        for j, value in enumerate((bytes(4), b"\x26\0\0\0", b"\xff" * 4)):
            entry = struct.pack("<HHI", tag, kind, count) + value
            file = tmp_path / f"{i}{j}.jpg"
            file.write_bytes(with_exif(b"\x02\0" + entry + b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0" + bytes(40)))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # as the command does
                try:
                    assert set(set_of(file).open(0).size) == {6, 4}
                except ValueError:
                    refusal(file)


def with_exif(directory: bytes) -> bytes:
    stream = BytesIO()
    Image.new("RGB", (6, 4)).save(stream, "JPEG")
    content, data = stream.getvalue(), b"Exif\0\0II*\0\x08\0\0\0" + directory
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + content[2:]


def test_a_damaged_avif_named_jpg(tmp_path):
    stream = BytesIO()
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (32, 32, 3), np.uint8)).save(stream, "AVIF")
    content = stream.getvalue()
    for end in range(10, len(content) - 10, len(content) // 20):
        (tmp_path / "x.jpg").write_bytes(content[:end])
        refusal(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").write_bytes(content)
    assert set_of(tmp_path / "x.jpg").open(0).size == (32, 32)  # a whole one is read, whatever its name


def test_several_photos_in_one_file(tmp_path):
    """MPO, the .jpg of many telephones: the first counts, at a reduced size too."""
    frames = [Image.new("RGB", (640, 480), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=frames[1:])
    for side, size in ((None, (640, 480)), (100, (160, 120))):
        image = set_of(tmp_path / "x.jpg").open(0, side)
        assert image.size == size
        assert image.getpixel((50, 50))[0] > 240


@pytest.mark.parametrize(
    ("side", "size"), [(None, (800, 600)), (600, (800, 600)), (300, (400, 300)), (150, (200, 150))]
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_comes_at_the_size_that_is_asked_for(tmp_path, side, size, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (800, 600)).save(tmp_path / "x.jpg", exif=exif)
    Image.new("RGB", (800, 600)).save(tmp_path / "x.png")
    assert set_of(tmp_path / "x.jpg").open(0, side).size == (size if orientation == 1 else size[::-1])
    assert set_of(tmp_path / "x.png").open(0, side).size == (800, 600)


@pytest.mark.parametrize("size", [(20_000, 20), (3, 1000)])
def test_a_thread_of_pixels_is_refused(tmp_path, size):
    """It would be resized to something that no memory holds."""
    Image.new("RGB", size).save(tmp_path / "x.png")
    assert "expected at most 200 times as long as wide" in refusal(tmp_path / "x.png")


@pytest.mark.parametrize("value", ["much", "0", "-1", "nan", "inf"])
def test_a_limit_that_is_none(tmp_path, monkeypatch, value):
    monkeypatch.setenv("PROGRAD_FAST_DECODE_GB", value)
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    assert "PROGRAD_FAST_DECODE_GB: expected gigabytes such as 1.2" in refusal(tmp_path / "x.png")


def test_the_limit_can_be_raised_as_the_refusal_says(tmp_path, monkeypatch):
    Image.new("1", (1600, 1000)).save(tmp_path / "x.png")
    monkeypatch.setenv("PROGRAD_FAST_DECODE_GB", "0.02")
    line = refusal(tmp_path / "x.png")
    monkeypatch.setenv("PROGRAD_FAST_DECODE_GB", line.split("PROGRAD_FAST_DECODE_GB=")[1].split(";")[0])
    assert set_of(tmp_path / "x.png").open(0).size == (1600, 1000)


def test_memory_of_all_threads_together_is_bounded(tmp_path, monkeypatch):
    """Never more than the limit is reserved, and every picture is read in the end."""
    for i in range(12):
        Image.new("RGB", (500 + i, 500)).save(tmp_path / f"{i}.png")
    monkeypatch.setenv("PROGRAD_FAST_DECODE_GB", "0.005")  # two at once
    found, used = set_of(*(tmp_path / f"{i}.png" for i in range(12))), []

    def look(i: int) -> int:
        with found.opened(i) as image:
            used.append(decode.memory._used)
            return image.width

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(look, range(12))) == [500 + i for i in range(12)]
    assert 0 < max(used) <= 5_000_000
    assert decode.memory._used == 0


def test_what_fails_on_an_open_picture_names_it(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    with (
        pytest.raises(ValueError, match=r"cannot read .*x\.png: MemoryError: no room"),
        set_of(tmp_path / "x.png").opened(0),
    ):
        raise MemoryError("no room")


MEASURE = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tests.data.test_picture_files import set_of
files = sorted(Path(sys.argv[1]).iterdir())
found = set_of(*files)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def look(i):
    with found.opened(i, 336) as image:
        return image.resize((224, 224)).size
with ThreadPoolExecutor(6) as pool:
    print(len(list(pool.map(look, range(len(files))))))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts KB as Linux does")
def test_real_memory_for_large_pictures_in_many_threads(tmp_path):
    for i in range(8):
        Image.new("RGB", (8660, 5773), (i, 90, 9)).save(tmp_path / f"{i}.png", compress_level=1)
    Image.new("RGB", (16320, 12240)).save(tmp_path / "200.jpg")
    Image.new("RGB", (16320, 12240)).save(tmp_path / "progressive.jpg", progressive=True)
    command = [sys.executable, "-c", MEASURE, tmp_path]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=True)
    pictures, kilobytes = map(int, done.stdout.split())
    assert pictures == 10
    assert kilobytes < 1_500_000
