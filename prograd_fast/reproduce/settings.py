"""Which of a method's published settings are for a table, a set, a number of shots and a model."""

import re
from dataclasses import dataclass

from prograd_fast.data import BENCHMARKS
from prograd_fast.methods import Method

# a preset's name: backbone, table, shots, sets, each if the settings are for it alone
_NAME = re.compile(r"(rn50|vit-b16)?-?(few-shot|base-to-new|cross-dataset|domain)?-?(?:(\d+)-shot)?-?(.*)")
_BACKBONES = {None: "", "rn50": "RN50", "vit-b16": "ViT-B/16"}
# words for sets in names of presets, without digits
_SETS = {
    "imagenet": "imagenet",
    "caltech": "caltech101",
    "pets": "oxford_pets",
    "cars": "stanford_cars",
    "flowers": "oxford_flowers",
    "food": "food101",
    "aircraft": "fgvc_aircraft",
    "sun": "sun397",
    "dtd": "dtd",
    "eurosat": "eurosat",
    "ucf": "ucf101",
}
_FIRST_WORDS = ("fgvc", "oxford", "stanford")  # of names of sets in two words


@dataclass(frozen=True)
class Chosen:
    """A method with its settings for a run.

    Attributes:
        method: the settings.
        preset: the name of the preset that they come from; "": the method's defaults, since it has none that fits.
        backbone: the model that the preset was published for; "" where it names none.
        for_table: whether the preset was published for this table.
    """

    method: Method
    preset: str
    backbone: str
    for_table: bool


@dataclass(frozen=True)
class _Condition:
    """A preset's purpose, by its name; "", 0 and the empty set stand for anything."""

    backbone: str
    tables: frozenset[str]
    shots: int
    sets: frozenset[str]


def published_settings(kind: type[Method], table: str, dataset: str, shots: int, backbone: str) -> Chosen:
    """Choose a method's preset by its name, and add what its authors set for the set (`Method.set_settings`).

    A name says what a preset is for: "vit-b16-base-to-new-imagenet-sun" for ViT-B/16, the table base-to-new, and two
    sets; "rn50-16-shot" for RN50 and 16 shots of the table few-shot, which is every preset's that names no table. Those
    for cross-dataset are for domain too: the same runs are tested. Names with other words are never chosen.

    Of the presets that allow set and shots, one for the table comes first, then one for the backbone, then one that
    names the set, then one that names the shots. Where none is for the table, the next best is taken, as
    `Chosen.for_table` tells.

    Args:
        kind: the method.
        table: one of `TABLES`.
        dataset: the set that is learned.
        shots: pictures per class.
        backbone: "RN50", "ViT-B/16" or another name, of the model that it is run on.
    """
    found = [(_condition(name), name) for name in kind.presets]
    fitting = [
        (
            (
                table in one.tables,
                one.backbone in ("", backbone),
                dataset in one.sets,
                one.shots == shots,
                "few-shot" in one.tables,
            ),
            name,
            one,
        )
        for one, name in found
        if one is not None and one.shots in (0, shots) and (not one.sets or dataset in one.sets)
    ]
    own = kind.set_settings.get(BENCHMARKS[dataset].coop_name, {})
    if not fitting:
        return Chosen(kind.of(own), "", "", False)
    _, name, one = max(fitting, key=lambda entry: entry[0])
    return Chosen(kind.of(own, name), name, one.backbone, table in one.tables)


def _condition(name: str) -> _Condition | None:
    """A preset's purpose; None where its name says more than is understood here."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    backbone, table, shots, rest = match.groups()
    words = [word for word in rest.split("-") if word and word not in _FIRST_WORDS]
    sets = [_SETS.get(word.rstrip("0123456789")) for word in words]
    if None in sets:
        return None
    tables = {"cross-dataset": ("cross-dataset", "domain"), None: ("few-shot",)}.get(table, (table,))
    return _Condition(_BACKBONES[backbone], frozenset(map(str, tables)), int(shots or 0), frozenset(map(str, sets)))
