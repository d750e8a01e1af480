"""The emojis as records: name, keywords, class, and on which side of which split each one is."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tools import WORK
from tools.classes import EMOJI_CLASSES

RECORDS = WORK / "emoji" / "emojis.json"

PRETRAINING = "pretraining"
HELD_OUT_SHARE = 0.4  # of the stems of every class: never in pretraining, in no style
SPLIT_SHARES = {"pool": 0.45, "test": 0.4, "validation": 0.15}  # of the held-out emojis of a class

# Parts of other emojis (skin tones, hair), their silhouettes (families) and gender signs.
SKIPPED_SUBGROUPS = {"skin-tone", "hair-style", "family", "gender"}
# Words that tell apart variants of one drawing: who is drawn, and which way it is turned.
PEOPLE = {"man", "men", "woman", "women", "person", "people", "boy", "girl"}
DIRECTIONS = {"facing", "left", "right", "up", "down", "leftwards", "rightwards"}
SAME_DRAWING = {"merman": "merperson", "mermaid": "merperson", "mrs claus": "santa claus", "mx claus": "santa claus"}


@dataclass(frozen=True)
class Emoji:
    """One emoji, whatever its style.

    Attributes:
        code: its code points, joined by "-", without variation selectors and joiners.
        name: Unicode's English name in lower case.
        keywords: Unicode's English keywords, at most 12.
        stem: what all variants of one drawing share; variants never straddle a split.
        class_name: the benchmark class, or "" if its subgroup belongs to none.
        split: "pretraining", "pool", "validation" or "test"; "" for a variant of a held-out emoji that has no class.
    """

    code: str
    name: str
    keywords: tuple[str, ...]
    stem: str
    class_name: str
    split: str


def read_emojibase(folder: Path) -> list[Emoji]:
    """Reads the unpacked `emojibase-data` package and assigns splits."""
    subgroups = json.loads((folder / "meta/groups.json").read_text())["subgroups"]
    entries = [entry for entry in json.loads((folder / "en/data.json").read_text()) if "subgroup" in entry]
    class_of = {subgroup: name for name, members in EMOJI_CLASSES.items() for subgroup in members}
    emojis = []
    for entry in sorted(entries, key=lambda entry: entry["order"]):
        subgroup = subgroups[str(entry["subgroup"])]
        if subgroup not in SKIPPED_SUBGROUPS:
            name = entry["label"].lower().replace(":", "").replace("-", " ")
            keywords = tuple(word.lower() for word in entry.get("tags", [])[:12])
            emojis.append(Emoji(code(entry["hexcode"]), name, keywords, stem(name), class_of.get(subgroup, ""), ""))
    return _with_splits(emojis)


def code(hexcode: str) -> str:
    """Code points in lower case, without variation selectors and joiners, which registries write differently."""
    return "-".join(point for point in hexcode.lower().split("-") if point not in ("fe0f", "200d"))


def stem(name: str) -> str:
    """The name that all variants of one drawing share."""
    words = re.sub(r"[^\w ]", "", name).split()
    rest = " ".join(word for word in words if word not in PEOPLE | DIRECTIONS)
    return SAME_DRAWING.get(rest, rest)


def ranked(stems: Iterable[str], salt: str) -> list[str]:
    """A fixed shuffle that depends on no library's random numbers."""
    return sorted(set(stems), key=lambda stem: hashlib.sha256(f"{salt}: {stem}".encode()).digest())


def split_groups(sizes: Mapping[str, int], shares: Mapping[str, float]) -> dict[str, str]:
    """Assigns every group of one class to a split: the largest first, each to the split that lacks most."""
    lacking = {split: share * sum(sizes.values()) for split, share in shares.items()}
    assigned = {}
    for group in sorted(ranked(sizes, "split"), key=lambda group: -sizes[group]):
        assigned[group] = max(lacking, key=lambda split: lacking[split])
        lacking[assigned[group]] -= sizes[group]
    return assigned


def _with_splits(emojis: list[Emoji]) -> list[Emoji]:
    variants: dict[str, Counter[str]] = defaultdict(Counter)  # class name -> stem -> number of emojis
    for emoji in emojis:
        if emoji.class_name:
            variants[emoji.class_name][emoji.stem] += 1
    held_out: dict[tuple[str, str], str] = {}
    for class_name, counts in variants.items():
        chosen = ranked(counts, "held out")[: round(HELD_OUT_SHARE * len(counts))]
        splits = split_groups({stem: counts[stem] for stem in chosen}, SPLIT_SHARES)
        held_out |= {(class_name, stem): split for stem, split in splits.items()}
    held_out_stems = {stem for _, stem in held_out}

    def split(emoji: Emoji) -> str:
        if emoji.stem not in held_out_stems:
            return PRETRAINING
        return held_out.get((emoji.class_name, emoji.stem), "")

    return [replace(emoji, split=split(emoji)) for emoji in emojis]


def save(emojis: list[Emoji]) -> None:
    """Writes the records where `load` finds them."""
    RECORDS.parent.mkdir(parents=True, exist_ok=True)
    RECORDS.write_text(json.dumps([asdict(emoji) for emoji in emojis], indent=1, ensure_ascii=False))


def load() -> list[Emoji]:
    """Reads what `tools.build_emoji` saved."""
    return [Emoji(**{**entry, "keywords": tuple(entry["keywords"])}) for entry in json.loads(RECORDS.read_text())]
