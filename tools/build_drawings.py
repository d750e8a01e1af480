"""Draws what pretraining sees: emojis of more makers and icons with names and tags, none of a held-out emoji."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from tools import WORK, emojis
from tools.build_clipart import BLANK, NEAR_EQUAL
from tools.build_emoji import PICTURES, SEEN_STYLES, STYLES, Style, draw, slug, svg_of
from tools.emojis import PRETRAINING, Emoji

DRAWINGS = WORK / "drawings"
# Emoji sets beside the styles of the benchmark; the last one names its drawings otherwise than by code points.
EMOJI_SETS = ("fluent-emoji", "emojione", "emojione-monotone", "fxemoji")
EMOJI_SET_BY_NAME = "streamline-emojis"
# Icon sets, and the suffix of the one style that is taken from those that draw every icon in several.
ICON_SETS = {
    "icon-park": "",
    "flat-color-icons": "",
    "fluent-color": "",
    "streamline-color": "",
    "streamline-flex-color": "",
    "streamline-plump-color": "",
    "streamline-freehand-color": "",
    "streamline-ultimate-color": "",
    "streamline-kameleon-color": "",
    "streamline-cyber-color": "",
    "streamline-stickies-color": "",
    "game-icons": "",
    "healthicons": "",
    "mdi": "",
    "ph": "duotone",
    "mingcute": "fill",
    "solar": "bold-duotone",
    "lucide-lab": "",
    "fa6-solid": "",
    "temaki": "",
    "medical-icon": "",
    "covid": "",
    "guidance": "",
    "meteocons": "",
    "streamline-pixel": "",
}
# Words of an icon's name that tell how it is drawn, not what.
STYLE_WORDS = set(
    "fill filled line outline outlined bold duotone linear broken rounded round sharp flat duo solid remix thin light "
    "off alt variant circle square box plus minus small large fst new 24px px one two three four five six".split()
)
# Words of user interfaces. An icon whose name has no more other words than these is left out: it shows nothing.
INTERFACE_WORDS = set(
    "arrow arrows chevron align text file folder format border sort filter layout view grid list table cursor ui "
    "webpage app application window browser code git database server cloud network wifi signal user account users zoom "
    "search settings setting cog gear menu button toggle upload download sync refresh undo redo copy paste cut trash "
    "delete edit add remove check checkbox checkmark cancel close share link unlink login logout log sign row column "
    "cell page document data chart graph select selection crop rotate flip layer layers align3 vertical horizontal left "
    "right up down top bottom center middle corner expand collapse maximize minimize alpha numeric number letter brand "
    "logo symbol screen resolution scan qr barcode hashtag percent math axis css html javascript api http json xml svg "
    "pdf doc csv message chat comment notification mail email inbox send reply forward attachment bookmark tag label "
    "pin location marker map navigation percentage time clock calendar date schedule alarm history circular diagram "
    "flow workflow transfer connection battery volume play pause stop record skip rewind playlist repeat shuffle "
    "currency dollar euro pound yen bitcoin rupee bank payment credit transaction invoice receipt".split()
)


@dataclass(frozen=True)
class Drawing:
    """What one picture shows.

    Attributes:
        set: the package that it is from.
        emoji: index into the emoji records; None for an icon.
        name: the emoji's or the icon's name.
        tags: an icon's other names and categories; an emoji's keywords are in its record.
    """

    set: str
    emoji: int | None
    name: str
    tags: tuple[str, ...]


def singular(word: str) -> str:
    """A plural noun's singular; good enough to compare names."""
    if len(word) > 3 and word.endswith("ies"):
        return f"{word[:-3]}y"
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


class HeldOut:
    """Tells whether a name could be that of a held-out emoji: whether it has all words of the emoji's stem."""

    def __init__(self, records: list[Emoji]) -> None:
        self.stems: dict[str, set[frozenset[str]]] = defaultdict(set)  # by their first word
        for emoji in records:
            words = frozenset(map(singular, re.sub(r"[^\w ]", "", emoji.stem).split()))
            if emoji.split != PRETRAINING and words:
                self.stems[min(words)].add(words)

    def names(self, name: str) -> bool:
        """`name` with words between "-" or spaces."""
        words = re.split(r"[-_ ]+", name.lower())
        found = {*map(singular, words), "".join(words)}
        return any(stem <= found for word in found for stem in self.stems.get(word, ()))


def emoji_drawings(packages: dict[str, Path], records: list[Emoji]) -> Iterator[tuple[Drawing, str]]:
    """Drawings of pretraining emojis, with their SVG, in sets that the benchmark does not have."""
    for name in EMOJI_SETS:
        style = Style.read(packages[name] / "package")
        for i, emoji in enumerate(records):
            svg = style.svg(emoji) if emoji.split == PRETRAINING else None
            if svg is not None:
                yield Drawing(name, i, emoji.name, ()), svg
    by_slug = {slug(emoji.name): i for i, emoji in enumerate(records)}
    icons = json.loads((packages[EMOJI_SET_BY_NAME] / "package/icons.json").read_text())
    for name, icon in icons["icons"].items():
        stem = re.sub(r"-\d$", "", name)
        index = by_slug.get(stem, by_slug.get(f"{stem}-face"))
        if index is not None and records[index].split == PRETRAINING:
            yield Drawing(EMOJI_SET_BY_NAME, index, records[index].name, ()), svg_of(icons, icon)


def icon_drawings(name: str, package: Path, held_out: HeldOut) -> Iterator[tuple[Drawing, str]]:
    """Icons of one set that show a thing which is no held-out emoji; the first of those with one name."""
    icons = json.loads((package / "icons.json").read_text())
    metadata = package / "metadata.json"
    categories = json.loads(metadata.read_text()).get("categories", {}) if metadata.exists() else {}
    tags: dict[str, list[str]] = defaultdict(list)
    others: dict[str, list[str]] = defaultdict(list)
    for alias, of in icons.get("aliases", {}).items():
        if "rotate" not in of and "hFlip" not in of:
            others[of["parent"]].append(alias)
            tags[of["parent"]].append(_shown(alias))
    for category, members in categories.items():
        for member in members:
            tags[member].append(category.lower().replace("&", "and"))
    seen = set()
    for key, icon in icons["icons"].items():
        shown = _shown(key)
        things = [word for word in shown.split() if word not in INTERFACE_WORDS]
        if (
            not icon.get("hidden")
            and key.endswith(ICON_SETS[name])
            and len(things) * 2 > len(shown.split())
            and shown not in seen
            and not any(map(held_out.names, (shown, *others[key])))
        ):
            seen.add(shown)
            known = tuple(tag for tag in dict.fromkeys(tags[key]) if tag not in ("", shown))
            yield Drawing(name, None, shown, known), svg_of(icons, icon)


def _shown(key: str) -> str:
    words = re.split(r"[-_ ]+", key.lower())
    return " ".join(word for word in words if word not in STYLE_WORDS and not word.isdigit())


def try_draw(svg: str) -> NDArray[np.uint8] | None:
    """Renders a drawing; None for one that resvg refuses or that is blank."""
    try:
        pixels = draw(svg)
    except Exception:
        return None
    return pixels if pixels.std() > BLANK else None


def grey_shapes(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, 1024) unit rows: 32 x 32 grey thumbnails around their mean, whose products are correlations."""
    grey = np.stack([picture.mean(2) for picture in pictures])
    grey = grey.reshape(len(grey), 32, 2, 32, 2).mean((2, 4)).reshape(len(grey), -1).astype(np.float32)
    grey -= grey.mean(1, keepdims=True)
    return grey / np.maximum(np.linalg.norm(grey, axis=1, keepdims=True), 1e-6)


def near_equals_of(pictures: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(N,): which pictures look like one of the others, or like its negative."""
    shapes = grey_shapes(others)
    parts = np.split(pictures, range(1000, len(pictures), 1000))
    return np.concatenate([np.abs(grey_shapes(part) @ shapes.T).max(1) > NEAR_EQUAL for part in parts])


def build_drawings(packages: dict[str, Path]) -> None:
    """Saves the pictures (N, 64, 64, 3) and what they show; the benchmark's styles come first, then sets, then icons."""
    records = emojis.load()
    with np.load(PICTURES) as archive:
        pictures, emoji, style = archive["pictures"], archive["emoji"], archive["style"]
    split = np.array([record.split for record in records])[emoji]
    benchmark = pictures[np.isin(split, ("pool", "validation", "test"))]
    own = np.flatnonzero((split == PRETRAINING) & (style < len(SEEN_STYLES)))
    shown = [Drawing(STYLES[style[i]], int(emoji[i]), records[emoji[i]].name, ()) for i in own]
    held_out = HeldOut(records)
    jobs = list(emoji_drawings(packages, records))
    for name in ICON_SETS:
        jobs += icon_drawings(name, packages[name] / "package", held_out)
    with ProcessPoolExecutor(2) as pool:
        svgs = [svg for _, svg in jobs]
        rendered = list(track(pool.map(try_draw, svgs, chunksize=64), "more drawings", len(jobs)))
    drawn = [(drawing, pixels) for (drawing, _), pixels in zip(jobs, rendered, strict=True) if pixels is not None]
    shown += [drawing for drawing, _ in drawn]
    pictures = np.concatenate([pictures[own], np.stack([pixels for _, pixels in drawn])])
    kept = np.flatnonzero(~near_equals_of(pictures, benchmark))
    np.save(DRAWINGS.with_suffix(".npy"), pictures[kept])
    entries: list[dict[str, Any]] = [asdict(shown[i]) for i in kept]
    DRAWINGS.with_suffix(".json").write_text(json.dumps(entries, indent=0))


def load_drawings() -> tuple[NDArray[np.uint8], list[Drawing]]:
    """Reads what `build_drawings` saved, without reading the pictures into memory."""
    entries = json.loads(DRAWINGS.with_suffix(".json").read_text())
    shown = [Drawing(**{**entry, "tags": tuple(entry["tags"])}) for entry in entries]
    return np.load(DRAWINGS.with_suffix(".npy"), mmap_mode="r"), shown
