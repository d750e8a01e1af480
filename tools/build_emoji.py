"""Draws the emojis in six styles and packs those held out of pretraining; OpenMoji's have an archive of their own."""

import json
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from prograd_fast.clip.emoji_lite import PICTURE_SIZE, square
from tools import ASSETS, WORK, emojis
from tools.archive import Picture, write_archive
from tools.classes import EMOJI_CLASSES
from tools.emojis import PRETRAINING, Emoji

PICTURES = WORK / "emoji" / "pictures.npz"
# A style is an @iconify-json package of the same name in sources.json. The last two are never shown in pretraining.
SEEN_STYLES = ("noto", "twemoji", "fluent-flat", "noto-v1")
UNSEEN_STYLES = ("fluent-hc", "openmoji")
STYLES = SEEN_STYLES + UNSEEN_STYLES

NOTICE = (
    "Noto Emoji (noto) and its first version (noto-v1): Google Inc, Apache-2.0. "
    "Twemoji (twemoji): Twitter, Inc and other contributors, CC BY 4.0. "
    "Fluent Emoji (fluent-flat, fluent-hc): Microsoft Corporation, MIT. "
    "Names: Unicode CLDR by way of emojibase-data, MIT. All rendered at 64 px on white."
)
OPENMOJI_NOTICE = (
    "All emojis designed by OpenMoji, the open-source emoji and icon project (https://openmoji.org). "
    "Licence: CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/). Rendered at 64 px on white; "
    "these pictures stay under CC BY-SA 4.0."
)


@dataclass(frozen=True)
class Style:
    """The drawings of one style, as an Iconify icon set."""

    icons: dict[str, Any]
    name_of_code: dict[str, str]

    @classmethod
    def read(cls, package: Path) -> "Style":
        """Reads an unpacked @iconify-json package; a set without `chars.json` has its drawings by name alone."""
        chars = package / "chars.json"
        names = json.loads(chars.read_text()) if chars.exists() else {}
        icons = json.loads((package / "icons.json").read_text())
        return cls(icons, {emojis.code(key): name for key, name in names.items()})

    def svg(self, emoji: Emoji) -> str | None:
        """The drawing of an emoji, or None if the style has none."""
        name = self.name_of_code.get(emoji.code) if self.name_of_code else slug(emoji.name)
        name = self.icons.get("aliases", {}).get(name, {}).get("parent", name)
        icon = self.icons["icons"].get(name)
        if icon is None:
            return None
        return svg_of(self.icons, icon)


def svg_of(icons: dict[str, Any], icon: dict[str, Any]) -> str:
    """An icon of an Iconify set as an SVG document, black where it has no colour of its own."""
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="#000" '
        f'width="{width}" height="{height}" viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )


def slug(name: str) -> str:
    """An emoji's name as Iconify writes it."""
    return re.sub(r"[^\w]+", "-", re.sub("[’“”]", "", name)).strip("-")


def draw(svg: str) -> NDArray[np.uint8]:
    """Renders a drawing on white, (64, 64, 3); twice as large first, so that thin lines survive."""
    import resvg_py  # the one package that only this step needs

    size = 2 * PICTURE_SIZE
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    return np.asarray(square(Image.open(BytesIO(bytes(png)))))


def build_emoji(packages: dict[str, Path]) -> None:
    """Writes the records and pictures of all emojis to the work folder, and the two archives to the assets."""
    records = emojis.read_emojibase(packages["emojibase"] / "package")
    emojis.save(records)
    jobs = []
    for style_index, style_name in enumerate(STYLES):
        style = Style.read(packages[style_name] / "package")
        for emoji_index, emoji in enumerate(records):
            svg = style.svg(emoji)
            if svg is not None:
                jobs.append((emoji_index, style_index, svg))
    emoji_of, style_of, drawings = zip(*jobs, strict=True)
    with ProcessPoolExecutor(2) as pool:
        rendered = list(track(pool.map(draw, drawings, chunksize=64), "emoji drawings", len(drawings)))
    pictures = np.stack(rendered)
    np.savez(PICTURES, pictures=pictures, emoji=np.array(emoji_of), style=np.array(style_of))

    class_names = list(EMOJI_CLASSES)
    held_out: dict[str, list[Picture]] = {style: [] for style in STYLES}
    for emoji_index, style_index, pixels in zip(emoji_of, style_of, pictures, strict=True):
        emoji, style_name = records[emoji_index], STYLES[style_index]
        if emoji.split not in ("", PRETRAINING):
            held_out[style_name].append(
                Picture(
                    file=f"{style_name}/{emoji.code}.webp",
                    label=class_names.index(emoji.class_name),
                    style=style_name,
                    split=emoji.split,
                    group=emoji.stem,
                    title=emoji.name,
                    pixels=pixels,
                )
            )
    openmoji = held_out.pop("openmoji")
    free = [picture for style in held_out.values() for picture in style]
    write_archive(ASSETS / "emoji.zip", class_names, free, NOTICE)
    write_archive(ASSETS / "emoji-openmoji.zip", class_names, openmoji, OPENMOJI_NOTICE)
