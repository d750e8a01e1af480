"""Guards the size of a change: the number of files that an operator, and an argument of it, is in."""

import re

from tests.paths import REPOSITORY

ROOMS = ("csrc", "prograd_fast", "tests", "tools")
# a list, a table or a call that names it
OPERATOR = r"difference_loss|ops\.differences|\"differences"
# users of the operator, which a new one has not yet
USERS = {"prograd_fast/losses/related.py", "tests/ops/test_negated.py"}


def files_with(pattern: str) -> set[str]:
    """Paths of source files in which a pattern occurs."""
    suffixes = {".py", ".json", ".h", ".cpp", ".cu", ".cuh"}
    paths = [path for room in ROOMS for path in (REPOSITORY / room).rglob("*.*") if path.suffix in suffixes]
    return {
        path.relative_to(REPOSITORY).as_posix()
        for path in paths
        if re.search(pattern, path.read_text(encoding="utf-8"))
    } - {"tests/project/test_footprint.py"}


def test_an_operator_is_in_at_most_21_files() -> None:
    """Formula, checks and kernels for CPU, CUDA C++ and Triton, with the tests, gates and choice of each."""
    family = {
        path.relative_to(REPOSITORY).as_posix()
        for room in ROOMS
        for path in (REPOSITORY / room).rglob("*differences.*")
        if path.suffix != ".pyc"
    }
    files = family | (files_with(OPERATOR) - USERS)
    assert len(files) <= 21, "\n".join(sorted(files))
    assert "prograd_fast/ops/differences.py" in files


def test_an_argument_of_a_loss_is_in_at_most_15_files() -> None:
    files = files_with("omega1")
    assert len(files) <= 15, "\n".join(sorted(files))
