"""pyproject.toml declares every package that the code imports, in the extra of the rooms that need it."""

import ast
import re
import sys
from pathlib import Path

import pytest

from tests.paths import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGE = REPOSITORY / "prograd_fast"
# what is imported under another name than it is installed by
NAMES = {"PIL": "pillow", "open_clip": "open_clip_torch", "sklearn": "scikit_learn", "markdown_it": "markdown_it_py"}
# the extras of a room; all others are the core, which has PyTorch alone
EXTRAS = {
    "clip": {"clip", "demo"},
    "data": {"clip", "heic"},
    "files": {"clip"},
    "terminal": {"cli"},
    "methods": {"cli"},
    "training": {"cli", "log"},
    "reproduce": {"cli"},
    "report": {"cli"},
    "export": {"onnx"},
    "cli": {"cli"},
    "integrations": {"dev"},  # the user has the framework that an adapter is for
}
OF_PYTORCH = {"triton", "typing_extensions"}  # its wheels bring them


def packages(requirements: list[str]) -> set[str]:
    """Names of packages, those of extras of this package included."""
    found = set()
    for requirement in requirements:
        name, inner = re.fullmatch(r"([\w.-]+)(?:\[([\w,]+)\])?.*", requirement).groups()
        if name == PROJECT["name"]:
            found |= {each for extra in inner.split(",") for each in packages(PROJECT["optional-dependencies"][extra])}
        else:
            found.add(name.lower().replace("-", "_"))
    return found


def imported(file: Path) -> set[str]:
    """Packages that a file imports anywhere in it, by the names under which they are installed."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
    roots = {name.partition(".")[0] for name in found} - set(sys.stdlib_module_names) - {"prograd_fast"}
    return {NAMES.get(root, root).lower() for root in roots}


ROOMS = sorted({path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py")})


@pytest.mark.parametrize("room", ROOMS)
def test_imports_are_declared(room):
    declared = packages(PROJECT["dependencies"]) | OF_PYTORCH
    declared |= packages([f"{PROJECT['name']}[{extra}]" for extra in EXTRAS.get(room, ())])
    files = (PACKAGE / room).rglob("*.py") if (PACKAGE / room).is_dir() else [PACKAGE / room]
    lacking = {f"{file.name}: {name}" for file in files for name in imported(file) - declared}
    assert sorted(lacking) == []


def test_rooms_with_extras_are_there():
    assert set(EXTRAS) <= set(ROOMS)


def test_what_others_import_is_declared_for_development():
    declared = packages([*PROJECT["dependencies"], f"{PROJECT['name']}[dev,tools]"]) | OF_PYTORCH
    declared |= {"tomli", "setuptools"}  # of pytest and of an environment
    rooms = ("tests", "tools", "benchmarks", "examples")
    files = [file for room in rooms for file in (REPOSITORY / room).rglob("*.py")]
    own = {*rooms, "prograd_fast_demo", *(file.stem for file in files)}
    lacking = {f"{file.relative_to(REPOSITORY)}: {name}" for file in files for name in imported(file) - declared - own}
    assert sorted(lacking) == []
