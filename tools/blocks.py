"""Blocks of a page that a command writes: what stands between a pair of comments in Markdown."""

from pathlib import Path


def write_blocks(page: Path, blocks: dict[str, str], command: str) -> None:
    """Replace what stands in a page's blocks.

    Args:
        page: The page. A block begins with the comment "NAME: written by COMMAND" and ends with "end of NAME".
        blocks: The new content by name; each block is there once.
        command: That writes them.

    Raises:
        ValueError: the page lacks a block.
    """
    text = page.read_text(encoding="utf-8")
    for name, content in blocks.items():
        begin, end = f"<!-- {name}: written by {command} -->\n", f"<!-- end of {name} -->\n"
        if (text.count(begin), text.count(end)) != (1, 1) or text.index(begin) > text.index(end):
            raise ValueError(f"{page}: expected {begin.strip()} and {end.strip()} once")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}{content.rstrip()}\n{end}{rest.partition(end)[2]}"
    page.write_text(text, encoding="utf-8")


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
