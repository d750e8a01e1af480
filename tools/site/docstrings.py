"""Docstrings: their head and sections, and how Sphinx reads them."""

import re

_SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Examples?|Note):$")
_CODE = re.compile(r"(`+[^`]+`+)")
_NAMED = re.compile(r"(\s*)([*\w]+(?:, [*\w]+)*)(:.*)", re.DOTALL)


def head_and_sections(docstring: str) -> tuple[str, dict[str, list[str]]]:
    """The text before the sections, and the lines of each section by its name.

    Args:
        docstring: As `inspect.getdoc` gives it.
    """
    sections: dict[str, list[str]] = {}
    head: list[str] = []
    into = head
    for line in docstring.splitlines():
        if found := _SECTION.match(line):
            into = sections.setdefault(found[1], [])
        else:
            into.append(line)
    return "\n".join(head).strip(), sections


def items(section: list[str]) -> dict[str, str]:
    """The entries of a section, "name: text" with further lines below, each in one line."""
    found: dict[str, str] = {}
    name = ""
    for line in section:
        entry = re.match(r"    (\w+(?:, \w+)*): (.*)", line)
        if entry:
            name, found[entry[1]] = entry[1], entry[2]
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found


def to_rst(lines: list[str]) -> list[str]:
    """Lines in reStructuredText: code and indented formulas as Markdown writes them, and no other markup.

    Args:
        lines: Of a docstring whose code stands between single backticks, and whose formulas are indented after an empty
            line. Sections keep their names and indentation.
    """
    result: list[str] = []
    in_section = in_example = in_block = False
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if section := _SECTION.match(line):
            in_section, in_example = True, section[1].startswith("Example")
        elif indent == 0 and line:
            in_section = in_example = False
        if in_block and line.strip() and indent < 4:
            in_block = False
        begins = indent >= 4 and i > 0 and not lines[i - 1].strip()
        if begins and not in_block and not in_section:
            result += ["::", ""]
            in_block = True
        result.append(line if in_block or in_example else _plain(line, in_section))
    return result


def _plain(line: str, in_section: bool) -> str:
    """A line of prose; the name that begins an entry of a section is left to napoleon."""
    named = _NAMED.fullmatch(line) if in_section else None
    if not named:
        named = re.fullmatch(r"(\s*)((?:[*-] )?)(.*)", line, re.DOTALL)  # a list keeps its sign
    start, line = (named[1] + named[2], named[3]) if named else ("", line)
    parts = _CODE.split(line)
    parts[::2] = [re.sub(r"([\\*|]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2]]
    for i, after in enumerate(parts[2::2]):
        joined = "\\ " if re.match(r"\w", after) else ""  # as in `Tensor`s
        parts[2 * i + 1] = _code(parts[2 * i + 1].strip("`")) + joined
    return start + "".join(parts)


def _code(text: str) -> str:
    """Code; a name that the reference has becomes a link."""
    return f":py:obj:`{text}`" if re.fullmatch(r"[A-Za-z][\w.]*\w", text) else f"``{text}``"
