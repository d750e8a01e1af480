"""Decode picture files, which may come from strangers: known formats alone, upright, in bounded memory."""

import ctypes
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, _imaging, features

_HEIF = False
with suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)
    _HEIF = True

# The formats that pillow may read a file as, and their suffixes. It knows more, and starts programs for some.
_SUFFIXES_OF = {
    "JPEG": ".jpg .jpeg .jpe .jfif .mpo",
    "PNG": ".png .apng",
    "WEBP": ".webp",
    "BMP": ".bmp .dib",
    "GIF": ".gif",
    "TIFF": ".tif .tiff",
    "PPM": ".ppm .pgm .pbm .pnm",
    "JPEG2000": ".jp2 .j2k .j2c .jpf .jpx",
    "PSD": ".psd",
    **({"AVIF": ".avif"} if "avif" in features.modules and features.check("avif") else {}),
    **({"HEIF": ".heic .heif .hif"} if _HEIF else {}),
}
FORMATS = tuple(_SUFFIXES_OF)
# Their first bytes say little: a file is read as one of these only where its suffix says so.
_BY_SUFFIX = {".tga": "TGA", ".pcx": "PCX", ".ico": "ICO", ".sgi": "SGI", ".rgb": "SGI"}
SUFFIXES = frozenset(" ".join(_SUFFIXES_OF.values()).split()) | frozenset(_BY_SUFFIX)

# Bytes for each pixel of the file that a decoder takes at its peak, the picture itself included, as measured
_DECODER_BYTES = {"WEBP": 12, "AVIF": 16, "HEIF": 16, "JPEG2000": 24, "TIFF": 8, "PSD": 8, "GIF": 12}
_PIXEL_BYTES = 4  # of pillow's RGB; the same for every other decoder
_STRIP_BYTES = 24  # for each pixel of a strip in `on_white`
_COEFFICIENT_BYTES = 2  # of a progressive JPEG, which is kept whole, for each pixel of each component
_MEMORY_VARIABLE, _MEMORY_GB = "PROGRAD_FAST_DECODE_GB", 1.2
_MOST_PIXELS_PER_BYTE = 1024  # of a JPEG: 64 pixels take two codes of one bit at least; libjpeg makes the others up
_MOST_ELONGATED = 200  # a picture of 1 x 20 000 pixels would be resized to 224 x 4 480 000
STRIP = 2**22  # pixels that `on_white` converts at once

_UPRIGHT = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_pillow_limit = threading.Lock()

# glibc keeps freed blocks of up to 32 MB for the thread that had them, which doubles the memory of six threads; larger
# ones go back at once. Pillow's own blocks have 16 MB.
_imaging.set_block_size(64 * 2**20)

# Libtiff writes its complaints to stderr. Pillow raises an exception as well, which is shown with the file's name.
for _handler in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
    with suppress(OSError, AttributeError):  # a pillow without libtiff, or with one that is out of reach
        getattr(ctypes.CDLL(_imaging.__file__), _handler)(None)


def memory_limit() -> int:
    """Bytes that all pictures in decoding may take together: $PROGRAD_FAST_DECODE_GB, or 1.2 GB.

    Raises:
        ValueError: the variable is no positive number.
    """
    text = os.environ.get(_MEMORY_VARIABLE) or str(_MEMORY_GB)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = math.nan
    if not 0 < gigabytes < math.inf:
        raise ValueError(f"{_MEMORY_VARIABLE}: expected gigabytes such as {_MEMORY_GB}, got {text!r}")
    return int(gigabytes * 1e9)


class _Memory:
    """Memory for decoding, shared by all threads: who needs more than is left waits."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._used = 0

    @contextmanager
    def reserved(self, size: int) -> Iterator[None]:
        """Hold `size` bytes, at most all, in this block. Nobody reserves twice, so that nobody waits for ever."""
        limit = memory_limit()
        size = min(size, limit)
        with self._changed:
            self._changed.wait_for(lambda: self._used + size <= limit)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()


memory = _Memory()


def memory_to_decode(file: BinaryIO, size: int, suffix: str, side: int | None) -> int:
    """The bytes that `decode` takes for the picture in a file of `size` bytes; reads its head, if its format allows.

    Raises:
        ValueError: it is more than `memory_limit`; the picture is extremely long, or cannot be in so few bytes.
        Exception: whatever pillow raises for a file that it cannot read.
    """
    image = open_picture(file, suffix)
    width, height = image.size
    if max(width, height) > _MOST_ELONGATED * min(width, height):
        raise ValueError(f"{width} x {height} pixels; expected at most {_MOST_ELONGATED} times as long as wide")
    if _is_jpeg(image) and "progressive" not in image.info and width * height > _MOST_PIXELS_PER_BYTE * size:
        raise ValueError(f"{size} bytes are too few for {width} x {height} pixels: the file is cut off or damaged")
    needed, limit = _bytes(image, _reduction(image, side)), memory_limit()
    if needed > limit:
        raise ValueError(
            f"{width} x {height} pixels take {needed / 1e9:.2g} GB to decode; expected {limit / 1e9:.2g} GB at most; "
            f"make it smaller, or allow more with {_MEMORY_VARIABLE}={math.ceil(needed / 1e8) / 10}"
        )
    return needed


def decode(content: bytes, suffix: str, side: int | None) -> Image.Image:
    """Decode a picture: RGB, upright (EXIF orientation), on white where it is transparent.

    Args:
        content: Of the file.
        suffix: Of its name, lower case.
        side: A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, as long as its shorter side keeps so many pixels: that
            is quicker, and takes less memory. None: at its size, if the memory suffices.

    Raises:
        Exception: whatever pillow raises for a file that it cannot read.
    """
    image: Image.Image = open_picture(BytesIO(content), suffix)
    scale = _reduction(image, side)
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    image.load()
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise ValueError("32 bits for each pixel, and nothing tells which number is white; save it with 8 or 16 bits")
    way = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    if way is not None:  # ImageOps.exif_transpose writes the EXIF data again, and fails on odd entries
        image = image.transpose(way)
    return on_white(image)


def open_picture(file: BinaryIO, suffix: str) -> Image.Image:
    """Pillow's picture of a file, not decoded; its name ends in `suffix`, lower case. Errors are pillow's own."""
    formats = (*FORMATS, _BY_SUFFIX[suffix]) if suffix in _BY_SUFFIX else FORMATS
    with _any_size():
        return Image.open(file, formats=formats)


def _reduction(image: Image.Image, side: int | None) -> int:
    """1, 2, 4 or 8: the part of its size that a picture is decoded at."""
    if not _is_jpeg(image):
        return 1
    shorter, limit = min(image.size), memory_limit()
    scales = [scale for scale in (8, 4, 2) if side is not None and shorter // scale >= side]
    scale = scales[0] if scales else 1
    while scale < 8 and _bytes(image, scale) > limit:
        scale *= 2
    return scale


def _is_jpeg(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO")  # MPO: several JPEGs in one file, as many telephones write them


def _bytes(image: Image.Image, scale: int) -> int:
    """Memory to decode a picture, turn it and lay it on white."""
    pixels = image.width * image.height
    strip = 0 if image.mode == "RGB" else _STRIP_BYTES * min(pixels, STRIP)
    if _is_jpeg(image):
        # colours have fewer pixels than brightness in most JPEGs: factors of each component, across and down
        factors = [(across, down) for _, across, down, _ in getattr(image, "layer", ())]
        finest = max(across for across, _ in factors) * max(down for _, down in factors)
        stored = pixels * sum(across * down for across, down in factors) // finest
        coefficients = _COEFFICIENT_BYTES * stored if "progressive" in image.info else 0
        return (
            strip + coefficients + 2 * _PIXEL_BYTES * (math.ceil(image.width / scale) * math.ceil(image.height / scale))
        )
    return strip + pixels * (_DECODER_BYTES.get(image.format or "", _PIXEL_BYTES) + _PIXEL_BYTES)


@contextmanager
def _any_size() -> Iterator[None]:
    """Replace pillow's own limit, which first warns on stderr, by ours."""
    with _pillow_limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def on_white(image: Image.Image) -> Image.Image:
    """A picture of any mode in RGB, white where it is transparent; 16-bit grey is scaled to 8 bits."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.convert("RGB")
    white = Image.new("RGB", image.size)
    rows = max(1, STRIP // max(1, image.width))
    for top in range(0, image.height, rows):  # four copies of a large picture would not fit in memory
        strip = image.crop((0, top, image.width, min(image.height, top + rows)))
        if strip.mode.startswith("I"):  # 16-bit grey, which pillow's own conversion cuts off at 255
            grey = np.asarray(strip).clip(0, 65535)
            strip = Image.fromarray((grey // 257).astype(np.uint8))
            if isinstance(clear := image.info.get("transparency"), int):
                strip.putalpha(Image.fromarray(np.where(grey == clear, 0, 255).astype(np.uint8)))
        ground = Image.new("RGBA", strip.size, "white")
        ground.alpha_composite(strip.convert("RGBA"))
        white.paste(ground.convert("RGB"), (0, top))
    return white
