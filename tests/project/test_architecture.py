"""docs/architecture.md is right: rooms, imports, includes and the files of each family of operators."""

import ast
import re
from pathlib import Path

import pytest

from tests.paths import REPOSITORY

PACKAGE, CSRC = REPOSITORY / "prograd_fast", REPOSITORY / "csrc"
COMPILED = "prograd_fast._C"  # no file of Python
PAGE = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")


def rows(*header: str) -> list[list[str]]:
    """The cells of the table with this header."""
    (table,) = re.findall(rf"\| {re.escape(' | '.join(header))} \|\n\| [- |]+\n((?:\|.*\n)+)", PAGE)
    return [line.strip("| ").split(" | ") for line in table.splitlines()]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# room by room, from top to bottom: what it may look into
IMPORTS = {room: names(may) for rooms, _, may in rows("room", "holds", "may import") for room in names(rooms)}
INCLUDES = {room: names(may) for rooms, _, may in rows("folder", "holds", "may include") for room in names(rooms)}
STEMS = [stem for cell, _ in rows("stem", "what it computes") for stem in names(cell)]
PLACES = [
    (names(folder)[0], names(example)[0]) for _, folder, example in rows("what", "where", "for the projection rule")
]


# files that belong to no family, or to several
SHARED = {
    "csrc/formulas/": (),
    "csrc/operators/": (),
    "csrc/cpu/": ("dispatch", "dual_loss_rows", "sorted_edges", "tensor_lists"),
    "csrc/cuda/": (
        *("attention_backward", "attention_backward_tiles", "attention_tiles", "mma"),
        *("dual_loss_rows", "launch", "operand_lists", "passes", "platform", "reduce", "segments", "storage"),
        *("tensor_lists", "vector"),
    ),
    "prograd_fast/backends/triton_kernels/": (
        "__init__",
        "attention_backward",
        "launch",
        "segments",
        "sums",
        "tensor_lists",
    ),
    "tests/gpu/triton/interpreted/": ("__init__", "golden", "optimizers"),
    "tests/native/": ("formulas", "main", "native"),
}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name; a folder is its __init__.py."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        *folders, file = path.relative_to(REPOSITORY).with_suffix("").parts
        found[".".join(folders if file == "__init__" else [*folders, file])] = path
    return found


MODULES = modules()


def room_of(module: str) -> str:
    """The package itself is `__init__.py`, as its row says."""
    parts = module.split(".")
    return {1: "__init__.py"}.get(len(parts)) or parts[1].replace("__main__", "__main__.py")


def imports_of(module: str) -> set[str]:
    """Modules of this package that a module names in an import anywhere in it, functions included."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            named = [name if name in {*MODULES, COMPILED} else str(node.module) for name in inner]
        else:
            continue
        found |= {name for name in named if name.split(".")[0] == "prograd_fast"} - {COMPILED}
    return found


def test_rooms_of_the_page_are_those_of_the_package():
    assert set(IMPORTS) == {room_of(module) for module in MODULES}


@pytest.mark.parametrize("table", [IMPORTS, INCLUDES], ids=["prograd_fast", "csrc"])
def test_arrows_point_down(table):
    order = list(table)
    for room, others in table.items():
        for other in others:
            assert (room, other) == ("cpu/kernels", "cpu") or order.index(other) > order.index(room), (room, other)


def test_imports_are_those_of_the_page():
    wrong = [
        f"{module} imports {other}"
        for module in MODULES
        for other in sorted(imports_of(module))
        if room_of(other) not in (room_of(module), *IMPORTS[room_of(module)])
    ]
    assert not wrong, "\n".join(wrong)


def test_modules_do_not_import_each_other_in_circles():
    """Within a room, too."""
    rest = {module: imports_of(module) & set(MODULES) - {module} for module in MODULES}
    while free := [module for module, others in rest.items() if not others & set(rest)]:
        for module in free:
            del rest[module]
    assert sorted(rest) == []


def test_includes_are_those_of_the_page():
    wrong = []
    for path in CSRC.rglob("*.*"):
        folder = path.parent.relative_to(CSRC).as_posix()
        for included in re.findall(r'^#include "(.+)"', path.read_text(encoding="utf-8"), flags=re.MULTILINE):
            other = (path.parent / included).resolve().parent.relative_to(CSRC.resolve()).as_posix()
            if other not in (folder, *INCLUDES[folder]):
                wrong.append(f"{path.relative_to(CSRC)} includes {included}")
    assert not wrong, "\n".join(wrong)


def test_a_family_has_its_stem_everywhere():
    defines = re.compile(r"^define(_loss)?\(", flags=re.MULTILINE)
    assert set(STEMS) == {path.stem for path in (PACKAGE / "ops").glob("*.py") if defines.search(path.read_text())}
    places = [folder for folder, _ in PLACES if folder in ("prograd_fast/ops/", "tests/ops/")]  # kernels may come later
    patterns = [f"{folder}{'test_' * folder.startswith('tests')}{stem}.py" for folder in places for stem in STEMS]
    assert [pattern for pattern in patterns if not any(REPOSITORY.glob(pattern))] == []
    assert [example for folder, example in PLACES if not example.startswith(folder)] == []


def test_kernels_stand_in_files_of_their_family():
    """A file of kernels has a family's stem, or holds what several families share."""
    for folder, shared in SHARED.items():
        files = {path.stem for path in (REPOSITORY / folder).glob("*.*") if path.suffix != ".pyc"}
        assert files <= {*STEMS, *shared}, folder
