"""Pages of the repository in their places in the site: links between them are written anew."""

import os
import re
import shutil
from pathlib import Path

_FENCE = re.compile(r"(^```.*?^```\n)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


class Places:
    """Where each page and file of the repository is in the site's source.

    Args:
        root: The repository.
        folder: The site's source.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self._root, self._folder = root, folder
        self._pages: dict[Path, Path] = {}

    def add_page(self, page: Path, place: Path) -> None:
        """Give a page its place, a path in the site's source."""
        self._pages[page] = place

    def write(self) -> None:
        """Write all pages, and beside them the pictures and files that they link to."""
        for page, place in self._pages.items():
            target = self._folder / place
            target.parent.mkdir(parents=True, exist_ok=True)
            parts = _FENCE.split(page.read_text(encoding="utf-8"))
            prose = [_LINK.sub(lambda link, page=page: self._link(link, page), part) for part in parts[::2]]
            parts[::2] = prose
            text = "".join(parts)
            title = "" if text.startswith("# ") else f"# {place.parent.name.capitalize()}: {place.stem}\n\n"
            target.write_text(title + text, encoding="utf-8")

    def _link(self, link: "re.Match[str]", page: Path) -> str:
        wanted = (page.parent / link[1]).resolve()
        here = self._pages[page].parent
        return "](" + Path(os.path.relpath(self._place_of(wanted), here)).as_posix()

    def _place_of(self, wanted: Path) -> Path:
        """The place of a page, or of another file, which is copied."""
        if wanted in self._pages:
            return self._pages[wanted]
        place = Path("files", wanted.relative_to(self._root))
        copy = self._folder / place
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(wanted, copy)
        return place
