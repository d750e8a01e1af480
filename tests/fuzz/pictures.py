"""Picture files of every format, damaged or made up: one is read, or refused with a ValueError that names it."""

import functools
import struct
import zlib
from io import BytesIO
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from prograd_fast.data import PictureSet
from tests.fuzz.registry import target

FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "TIFF": "tif", "PPM": "ppm"}
OTHERS = ("ICO", "DDS", "TGA", "PCX", "SGI", "IM", "MSP", "EPS", "PDF", "JPEG2000", "AVIF", "ICNS", "SPIDER", "BLP")
MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "I", "F")


@functools.cache
def whole() -> list[bytes]:
    """A picture of each format and mode that pillow writes, some with several frames, EXIF data and comments."""
    random = np.random.RandomState(0)
    base = Image.fromarray(random.randint(0, 256, (19, 23, 4), np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "somebody"
    options = [{}, {"exif": exif}, {"save_all": True, "append_images": [base.convert("RGB")]}, {"progressive": True}]
    options += [{"compression": kind} for kind in ("tiff_lzw", "tiff_deflate", "jpeg", "group4", "packbits")]
    found = []
    for kind in (*FORMATS, *OTHERS):
        for mode in MODES:
            image = base.convert("L").convert(mode) if mode in ("I;16", "I", "F") else base.convert(mode)
            for given in options if kind in FORMATS else options[:1]:
                stream = BytesIO()
                try:
                    image.save(stream, kind, **given)
                except Exception:  # pillow cannot write this one
                    continue
                found.append(stream.getvalue())
    return found


def opened(file: Path) -> None:
    """The use that a user's run makes of the file."""
    one = np.zeros(1, np.int64)
    pictures = PictureSet("mine", ("a",), one, np.array(["test"]), np.array([""]), [file])
    try:
        picture, refusal = pictures.open(0), ""
    except ValueError as error:
        picture, refusal = None, str(error)
    if picture is None:
        assert str(file) in refusal, refusal
        assert refusal.endswith("; replace or remove it"), refusal
    else:
        assert picture.mode == "RGB"
        picture.getpixel((picture.width - 1, picture.height - 1))


def damaged(random: Random, content: bytearray) -> bytes:
    """Bytes changed, taken out, put in, doubled or cut off; small numbers made large."""
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(content) + 1)
        match random.randrange(7):
            case 0:
                content[at : at + 1] = random.randbytes(1)
            case 1:
                del content[at:]
            case 2:
                del content[at : at + random.randint(1, 9)]
            case 3:
                content[at:at] = random.randbytes(random.randint(1, 9))
            case 4:
                content[at:at] = content[at : at + random.randint(1, 99)]
            case 5:
                content[at : at + 4] = random.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"])
            case 6:  # most of what decides is at the front
                at = random.randrange(min(64, len(content) + 1))
                content[at : at + 1] = random.randbytes(1)
    return bytes(content)


@target("damaged pictures")
def damaged_picture(random: Random, folder: Path) -> None:
    """A damaged picture under any suffix is read, or refused with one line that names it."""
    file = folder / f"x.{random.choice(list(FORMATS.values()))}"
    file.write_bytes(damaged(random, bytearray(random.choice(whole()))))
    opened(file)


def png(random: Random) -> bytes:
    """Chunks with right checksums: sizes, depths and colours that do not fit, texts that unpack to very much."""
    size = random.choice([(1, 1), (7, 3), (2**31 - 1, 2**31 - 1), (30_000, 30_000), (0, 5), (2000, 2000)])
    head = struct.pack(
        ">IIBBBBB", *size, *(random.choice(values) for values in ((1, 8, 16, 3), range(8), (0, 9), (0,), (0, 1)))
    )
    text = zlib.compress(bytes(random.choice([10, 2**21, 2**25])), 9)
    exif = b"Exif\0\0II*\0" + random.randbytes(random.randint(0, 60))
    chunks = {
        b"zTXt": b"x\0\0" + text,
        b"iTXt": b"x\0\1\0\0\0" + text,
        b"iCCP": b"x\0\0" + text,
        b"eXIf": exif[6:],
        b"tRNS": random.randbytes(random.randint(0, 9)),
        b"PLTE": random.randbytes(random.randint(0, 999)),
        b"acTL": random.randbytes(8),
        b"fcTL": random.randbytes(random.choice([26, 5])),
        b"IDAT": zlib.compress(random.randbytes(random.randint(0, 99))),
        b"pHYs": random.randbytes(random.randint(0, 9)),
    }
    names = [b"IHDR", *random.choices(list(chunks), k=random.randint(0, 6)), b"IDAT", b"IEND"]
    content = b"\x89PNG\r\n\x1a\n"
    for name in names:
        data = {b"IHDR": head, b"IEND": b""}.get(name, chunks.get(name, b""))
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return content


def tiff(random: Random) -> bytes:
    """A directory of random tags, among them those that decide, with random types, counts and values."""
    deciding = [256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 282, 284, 317, 320, 322, 323, 324, 325, 338, 339, 347]
    entries = sorted(random.choices(deciding, k=random.randint(3, 20)))
    order = random.choice("<>")
    body = b""
    for tag in entries:
        value = random.choice([0, 1, 2, 3, 8, 16, 32, 5000, 2**31 - 1, 2**32 - 1, random.getrandbits(16)])
        count = random.choice([0, 1, 1, 1, 2, 3, 4, 2**31, 2**32 - 1])
        body += struct.pack(f"{order}HHII", tag, random.choice([*range(1, 14), 16]), count, value)
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    following = random.choice([0, 8, 2**32 - 1])  # a chain of directories may come back to itself
    return head + struct.pack(f"{order}H", len(entries)) + body + struct.pack(f"{order}I", following) + bytes(64)


def portable(random: Random) -> bytes:
    """A PPM header of random words."""
    words = [
        "P1",
        "P2",
        "P3",
        "P4",
        "P5",
        "P6",
        "Pf",
        "PF",
        "P7",
        "Py",
        "9" * 30,
        "-1",
        "0",
        "3",
        "255",
        "65535",
        "70000",
    ]
    return "\n".join(
        [random.choice(words[:10]), *random.choices(words, k=random.randint(1, 9))]
    ).encode() + random.randbytes(20)


def exif(random: Random) -> bytes:
    """A whole JPEG with an odd directory of EXIF data."""
    stream = BytesIO()
    Image.new("RGB", (6, 4)).save(stream, "JPEG")
    content = stream.getvalue()
    data = b"Exif\0\0" + tiff(random)
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + content[2:]


@target("made-up pictures")
def made_up_picture(random: Random, folder: Path) -> None:
    """A header that was made up is read, or refused, and never takes much memory."""
    file = folder / f"x.{random.choice(list(FORMATS.values()))}"
    file.write_bytes(random.choice([png, tiff, portable, exif])(random))
    opened(file)
