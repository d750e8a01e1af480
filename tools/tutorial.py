"""Run docs/tutorial.md, and store its outputs and pictures: `python -m tools.tutorial`."""

import contextlib
import io
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

from prograd_fast import cli

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
IMAGES = PAGE.parent / "images" / "tutorial"
BLOCK = re.compile(r"```(python|bash)\n(.*?)```\n(\n```text\n.*?```\n)?", re.DOTALL)


def run(page: str, folder: Path) -> tuple[str, list[Path]]:
    """Run the blocks of a page in their order: Python in one namespace, commands one after the other.

    Args:
        page: In Markdown. A block of text behind a block of Python is its output.
        folder: Where the blocks run, and write their pictures.

    Returns:
        The page with the outputs of this run, and the pictures.

    Raises:
        RuntimeError: a command has failed.
    """
    matplotlib.use("Agg")
    names: dict[str, Any] = {"__name__": "tutorial"}

    def block(found: re.Match[str]) -> str:
        kind, text, _ = found.groups()
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            if kind == "python":
                exec(compile(text, "tutorial", "exec"), names)
            else:
                _commands(text)
        output = f"\n```text\n{said.getvalue()}```\n" if kind == "python" and said.getvalue() else ""
        return f"```{kind}\n{text}```\n{output}"

    with _working_in(folder):
        return BLOCK.sub(block, page), sorted(folder.glob("*.png"))


def _commands(text: str) -> None:
    """Run each line in this process: the imports take longer than most commands."""
    for line in text.splitlines():
        command, *arguments = shlex.split(line)
        if command != "prograd-fast" or cli.run(arguments):
            raise RuntimeError(f"this command failed: {line}")


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def main() -> None:
    """The command."""
    with tempfile.TemporaryDirectory() as folder:
        page, pictures = run(PAGE.read_text(encoding="utf-8"), Path(folder))
        IMAGES.mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            shutil.copyfile(picture, IMAGES / picture.name)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
