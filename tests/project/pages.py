"""Carries out a page: writes the files that it shows, and changes those that it shows a difference of."""

import re
from pathlib import Path


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
