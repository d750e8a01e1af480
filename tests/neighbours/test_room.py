"""Guards the room of the neighbours: nothing else loads it, it stays small, and no golden file of it goes unread."""

import re
import subprocess
import sys
from pathlib import Path

from tests.paths import GOLDEN, REPOSITORY

FILES = sorted((REPOSITORY / "prograd_fast" / "neighbours").glob("*.py"))
GOLDEN_FILES = {
    "auvit",
    "edgevit_lgl",
    "face_alignment_decode",
    "gsf",
    "local_soft_argmax",
    "simpleclick",
    "structure_coherence",
    "tensor_dropout",
    "xvit_shift_attention",
}


def test_nothing_else_imports_it() -> None:
    rooms = ("", ".clip", ".functional", ".methods", ".training", ".report", ".cli.app")
    code = f"import sys, {', '.join('prograd_fast' + room for room in rooms)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "prograd_fast.methods" in done.stdout.split()
    assert "prograd_fast.neighbours" not in done.stdout


def test_its_size() -> None:
    lines = {file.name: len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert max(lines.values()) <= 300, lines
    assert sum(lines.values()) <= 3500, lines


def test_every_golden_file_is_compared_to_the_last_array() -> None:
    """Each is opened by a test file that ends by asserting that no array was left."""
    opened = set()
    for file in Path(__file__).parent.glob("test_*.py"):
        text = file.read_text(encoding="utf-8")
        if "all_compared()" in text or ".unused" in text or "compare_with_the_authors(" in text:
            opened |= set(re.findall(r'Golden\("(\w+)"', text))
    assert opened == GOLDEN_FILES
    assert all((GOLDEN / f"{name}.npz").is_file() for name in GOLDEN_FILES)
