"""The order of the pages in the site's margin."""

from pathlib import Path

SECTIONS: dict[str, tuple[str, ...]] = {
    "Begin": ("start", "tutorial", "your-pictures", "training-loop", "moving-from-coop"),
    "Choose": ("which-method", "methods", "methods/index", "what-can-go-wrong", "numbers-that-differ"),
    "Understand": ("concepts", "glossary", "prompt-step", "settings"),
    "Measure": (
        *("benchmark-sets", "reproduce", "study/README", "study/tables", "study/selection"),
        *("evidence", "benchmarks"),
    ),
    "Go further": ("integrations", "scaling", "kernels", "neighbours", "packaging"),
    "Look up": ("reference/index", "reference/command", "model-card", "data-card"),
    "Take part": (
        *("architecture", "adding-a-method", "adding-an-operator", "project/contributing", "project/security"),
        *("project/changelog", "project/code_of_conduct", "project/readme"),
    ),
}


def contents(folder: Path) -> str:
    """The sections as Sphinx's tables of contents, for the end of the first page.

    Args:
        folder: The site's source, with all pages. Pages that are not in it are left out.
    """
    tables = []
    for caption, pages in SECTIONS.items():
        there = [page for page in pages if any((folder / f"{page}.{kind}").exists() for kind in ("md", "rst"))]
        tables.append("\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *there, "```", ""]))
    return "".join(tables)
