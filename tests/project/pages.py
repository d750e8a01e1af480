"""What stands on a page: its blocks and commands. A page whose blocks are files and differences is carried out."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

_MARK = re.compile(r"<!-- not run: (.+) -->")
# what a line of a block that tells no language begins with, where it is a command
_PROGRAMS = ("$ ", "prograd-fast ", "make ", "pip ", "python ", ".venv/bin/", "torchrun ", "pre-commit ")


class Block(NamedTuple):
    """A block of code.

    Attributes:
        language: as the page says, "" for none.
        text: its lines.
        not_run: why no test runs it, from a comment `<!-- not run: REASON -->` before it; "" where one does.
    """

    language: str
    text: str
    not_run: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command in it, without what comments say."""
        if self.language in ("sh", "bash"):
            lines = self.text.splitlines()
        elif self.language in ("", "text", "console"):
            lines = [line for line in self.text.splitlines() if line.startswith(_PROGRAMS)]
        else:
            lines = []
        found = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
        return [words for words in found if words]


def blocks(page: str) -> list[Block]:
    """The blocks of a page in Markdown, in their order; indented ones too."""
    found, comment = [], ""
    for token in MarkdownIt().parse(page):
        if token.type in ("fence", "code_block"):
            mark = _MARK.fullmatch(comment.strip())
            found.append(Block(token.info.strip(), token.content, mark[1] if mark else ""))
        comment = token.content if token.type == "html_block" else ""
    return found


def inline_code(page: str) -> list[str]:
    """The code within the sentences of a page."""
    tokens = [part for token in MarkdownIt("commonmark").parse(page) for part in token.children or ()]
    return [" ".join(token.content.split()) for token in tokens if token.type == "code_inline"]


def carry_out(page: str, root: Path) -> list[Path]:
    """Do in a folder what a page says, and return the new files.

    A path in backticks and a colon stand before each block. A block of Python is a new file; a diff has an added line
    for each "+", parts are separated by "@@", and the other lines of a part occur once in the file, in this order.
    """
    new = []
    for name, kind, text in re.findall(r"^`(\S+)`:\n\n```(python|diff)\n(.*?)```", page, re.DOTALL | re.MULTILINE):
        file = root / name
        if kind == "python":
            assert not file.exists(), f"{name} exists"
            file.write_text(text, encoding="utf-8")
            new.append(file)
            continue
        for part in text.split("@@\n"):
            lines = part.splitlines(keepends=True)
            before = "".join(line.removeprefix(" ") for line in lines if not line.startswith("+"))
            after = "".join(line[1:] if line[0] in " +" else line for line in lines)
            source = file.read_text(encoding="utf-8")
            assert source.count(before) == 1, f"{name}: expected once:\n{before}"
            file.write_text(source.replace(before, after), encoding="utf-8")
    return new
