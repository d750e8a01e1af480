"""Writes the source of the site, and has Sphinx build it."""

import shutil
from pathlib import Path

from sphinx.cmd.build import build_main

from tools.site import command, methods, navigation, reference
from tools.site.links import Places

ROOT = Path(__file__).parents[2]
# pages of the repository's root that belong to the site; each has its place under "project"
ROOT_PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "CHANGELOG.md")


def write_source(folder: Path) -> None:
    """Write all pages as Sphinx reads them: those of `docs/`, those of the root, and those made from the code."""
    shutil.rmtree(folder, ignore_errors=True)
    places = Places(ROOT, folder)
    for page in sorted((ROOT / "docs").rglob("*.md")):
        places.add_page(page, page.relative_to(ROOT / "docs"))
    for name in ROOT_PAGES:
        places.add_page(ROOT / name, Path("project", name.lower()))
    places.write()
    methods.write(folder / "methods")
    reference.write(folder / "reference")
    command.write(folder / "reference")
    with (folder / "index.md").open("a", encoding="utf-8") as index:
        index.write(navigation.contents(folder))


def build(source: Path, out: Path) -> int:
    """Write the source of the site and build it, strictly: each warning counts as an error.

    Args:
        source: The folder of the source; what is in it is removed.
        out: The folder of the site.

    Returns:
        Sphinx's exit code, 0 for success.
    """
    write_source(source)
    shutil.rmtree(out, ignore_errors=True)
    options = ["-W", "--keep-going", "-q", "-b", "html", "-c", str(Path(__file__).parent), "-d", f"{source}.doctrees"]
    return build_main([*options, str(source), str(out)])
