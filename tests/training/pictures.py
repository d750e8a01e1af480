"""Folders with a split of their own, for tests of what is learned and tested."""

from pathlib import Path

from tests.conftest import SHAPES, draw


def own_split(root: Path, test: str) -> Path:
    """A folder with a split of its own, eight pictures to learn from; the test ones may be among them."""
    for label, folder in enumerate(SHAPES):
        for part in ("train", "test"):
            (root / part / folder).mkdir(parents=True)
        for i in range(8):
            draw(folder, 100 * label + i).save(root / "train" / folder / f"{i}.png")
        for i in range(8):
            copied = test == "all" or (test == "half" and i < 4)
            draw(folder, 100 * label + i + (0 if copied else 50)).save(root / "test" / folder / f"another name {i}.png")
    return root
