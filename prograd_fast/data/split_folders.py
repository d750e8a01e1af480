"""Folders named train, valid, Testing ...: which part of a split a folder is, and what only looks like a split."""

import re
from collections.abc import Sequence
from pathlib import Path

_SPELLINGS = {
    "pool": "train|trains|training|trn|tr",
    "validation": "val|vals|valid|validation|validate|dev|devel|development",
    "test": "test|tests|testing|tst|te|ts",
}
_MORE = "(?:the|my|set|sets|data|dataset|images?|imgs?|pictures?|photos?|samples?|files?|splits?)*"
_PART = re.compile(rf"\d*{_MORE}(?:{'|'.join(f'(?P<{part}>{words})' for part, words in _SPELLINGS.items())}){_MORE}\d*")
_LOOKS = re.compile(rf"\d*{_MORE}(?:eval|evaluation|holdout|heldout|fold|cv|split){_MORE}\d*")
_WORD = re.compile(r"[^\W\d_A-Z]+|[A-Z](?:[A-Z]+|[^\W\d_A-Z]*)|\d+")  # also of camelCase
_EXPECTED = (
    "expected train/ and test/ (and optionally val/) with one folder per class in each, or one folder per class and "
    "nothing else"
)


def part_named(name: str) -> str | None:
    """The part of a split that a folder of this name is, in any case and usual spelling; None for other names."""
    found = _PART.fullmatch(_letters(name))
    return None if found is None else found.lastgroup


def find_parts(root: Path, folders: Sequence[Path]) -> dict[str, Path]:
    """The folders of a split by their part; empty where the folders are classes.

    Raises:
        ValueError: they look like a split and are none: a part is missing, there twice, or beside a class folder. A
            class of such a name needs another folder name; `classes.txt` can give it its own name back.
    """
    parts = [part_named(folder.name) for folder in folders]
    alike = [
        part is not None or bool(_LOOKS.fullmatch(_letters(f.name))) for part, f in zip(parts, folders, strict=True)
    ]
    if not folders or (not any(parts) and not all(alike)):
        _refuse_parts_in_names(root, folders)
        return {}
    found = f"{root}: found the folders {', '.join(folder.name for folder in folders)}"
    classes = [folder.name for folder, part in zip(folders, parts, strict=True) if part is None]
    doubles = [part for part in _SPELLINGS if parts.count(part) > 1]
    if doubles:
        twice = [folder.name for folder, part in zip(folders, parts, strict=True) if part == doubles[0]]
        raise ValueError(f"{found}; {' and '.join(twice)} look like the same part of a split; {_EXPECTED}")
    if classes or not {"pool", "test"} <= set(parts):
        raise ValueError(
            f"{found}; {_EXPECTED}. If a class is called so, rename its folder: classes.txt can give it any name"
        )
    return {part: folder for part, folder in zip(parts, folders, strict=True) if part is not None}


def check_no_split_inside(folders: Sequence[Path]) -> None:
    """ValueError where a class folder holds a split of its own, which would be mixed: CLASS/train and CLASS/test."""
    for folder in folders:
        inside = {part_named(child.name): child.name for child in folder.iterdir() if child.is_dir()}
        inside.pop(None, None)
        if len(inside) > 1:
            raise ValueError(
                f"{folder}: found the folders {', '.join(sorted(inside.values()))} in a class folder; expected "
                f"{folder.parent.name}/train/{folder.name} and {folder.parent.name}/test/{folder.name}"
            )


def _refuse_parts_in_names(root: Path, folders: Sequence[Path]) -> None:
    """ValueError where folders differ by the part of a split in their names: cats_train and cats_test, trainA."""
    seen: dict[tuple[str, ...], dict[str, str]] = {}
    for folder in folders:
        words = _WORD.findall(folder.name)
        for i, word in enumerate(words):
            if part := part_named(word):
                others = tuple(other.casefold() for other in (*words[:i], *words[i + 1 :]))
                seen.setdefault(others, {})[part] = folder.name
    for named in seen.values():
        if "pool" in named and len(named) > 1:
            raise ValueError(
                f"{root}: the folders {' and '.join(sorted(named.values()))} look like parts of one class or set; "
                f"{_EXPECTED}. If they are classes, rename their folders: classes.txt can give them any name"
            )


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())
