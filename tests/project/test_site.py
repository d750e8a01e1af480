"""The site (`make docs`): built without a warning, with every page and public name, loading nothing from outside."""

import importlib
import inspect
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from docutils.utils.math.latex2mathml import tex2mathml

import prograd_fast as pf
from prograd_fast.methods import METHODS
from tests.paths import REPOSITORY
from tests.project.pages import blocks
from tests.project.test_pages import understood
from tests.report.browser import CHROMIUM, Browser
from tools.site import command, methods, navigation, reference
from tools.site.build import ROOT_PAGES
from tools.site.docstrings import head_and_sections, items, to_rst
from tools.site.links import Places

# What a page loads without being asked: these attributes, and addresses in its styles. A link may lead away.
LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed|object|input)\b[^>]*?\b(?:src|srcset|data)=\"([^\"]+)"
)
LINKED = re.compile(r"<link\b([^>]*)>")
STYLED = re.compile(r"(?:url\(|@import\s)\s*[\"']?([^\"')\s]+)")


# ---- the sources, in seconds


def test_every_page_is_in_the_navigation():
    listed = {page for pages in navigation.SECTIONS.values() for page in pages}
    pages = {page.relative_to(REPOSITORY / "docs").with_suffix("") for page in (REPOSITORY / "docs").rglob("*.md")}
    pages |= {Path("project", Path(name).stem.lower()) for name in ROOT_PAGES}
    assert {page.as_posix() for page in pages} - {"index"} <= listed


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_method_page_says_what_it_is(method):
    """Source, formula, meaning of every setting, every preset; its command and its block are right."""
    page = methods.page(method)
    how = page.partition("## How it works")[2].partition("## How to use it")[0]
    assert re.search(r"https://arxiv\.org/abs/\d{4}\.\d{4,5}", how), "no source"
    assert any(not block.language for block in blocks(how)), "no formula"
    assert not re.findall(r"^\| `\w+` \| .* \|  \|$", page, re.MULTILINE), "a setting without a meaning"
    assert [preset for preset in method.presets if f"| `{preset}` |" not in page] == []
    commands = [words for block in blocks(page) for words in block.commands]
    assert commands
    for words in commands:
        understood(words)
    (code,) = [block.text for block in blocks(page) if block.language == "python"]
    exec(compile(code, "page", "exec"), {})


def test_every_public_module_has_a_page():
    """The modules of `__all__`, and packages and modules that have an `__all__` of their own, but for inner rooms."""
    inner = {"prograd_fast.cli", "prograd_fast.files", "prograd_fast.ops", "prograd_fast.terminal"}
    package = REPOSITORY / "prograd_fast"
    with_all = {
        f"prograd_fast.{path.parent.name if path.stem == '__init__' else path.stem}"
        for path in {*package.glob("*.py"), *package.glob("*/__init__.py")} - {package / "__init__.py"}
        if re.search(r"^__all__", path.read_text("utf-8"), re.MULTILINE)
    } - inner
    modules = {getattr(pf, name).__name__ for name in pf.__all__ if inspect.ismodule(getattr(pf, name))}
    assert with_all | modules <= set(reference.ROOMS)


def test_formulas_of_pages_are_understood():
    formulas = [
        formula
        for page in sorted((REPOSITORY / "docs").rglob("*.md"))
        for formula in re.findall(r"^```math\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    ]
    assert len(formulas) >= 8
    for formula in formulas:
        assert "<math" in tex2mathml(formula, as_block=True)


def test_links_lead_to_places_in_the_site(tmp_path):
    root, site = tmp_path / "root", tmp_path / "site"
    (root / "docs").mkdir(parents=True)
    (root / "LICENSE").write_text("free")
    code = "```python\nx[0](docs/a.md)\n```\n"
    (root / "README.md").write_text(f"# R\n[a](docs/a.md#b) [l](LICENSE) [web](https://x.org) [here](#r)\n{code}")
    (root / "docs" / "a.md").write_text("[r](../README.md)\n")
    places = Places(root, site)
    places.add_page(root / "README.md", Path("project/readme.md"))
    places.add_page(root / "docs" / "a.md", Path("a.md"))
    places.write()
    changed = "[a](../a.md#b) [l](../files/LICENSE) [web](https://x.org) [here](#r)"
    assert (site / "project" / "readme.md").read_text() == f"# R\n{changed}\n{code}"
    assert (site / "a.md").read_text().endswith("[r](project/readme.md)\n")
    assert (site / "files" / "LICENSE").read_text() == "free"


def test_docstrings_are_read_as_markdown():
    docstring = """Sums `lambda_` and 2*x | y.

    g = a - 2*b

* a `Tensor`s list

Args:
    lambda_: the factor of `x`,
        go on.

Example:
    >>> 2 * 3
    6
"""
    head, sections = head_and_sections(docstring)
    assert head.endswith("* a `Tensor`s list")
    assert items(sections["Args"]) == {"lambda_": "the factor of `x`, go on."}
    rst = "\n".join(to_rst(docstring.splitlines()))
    assert ":py:obj:`lambda_` and 2\\*x \\| y." in rst
    assert "::\n\n    g = a - 2*b\n" in rst
    assert "* a :py:obj:`Tensor`\\ s list" in rst
    assert "    lambda_: the factor of ``x``," in rst
    assert "    >>> 2 * 3\n" in rst


def test_command_page_has_every_option(tmp_path):
    command.write(tmp_path)
    page = (tmp_path / "command.md").read_text("utf-8")
    for name in ("prograd-fast train", "prograd-fast data check", "prograd-fast cache clear"):
        assert f"\n## {name}\n" in page
    assert "| `--shots N\\|all` | Learn from" in page


# ---- the site itself: a minute or two


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    arguments = ["--source", str(folder / "source"), "--out", str(folder / "docs")]
    done = subprocess.run(
        [sys.executable, "-m", "tools.site", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "docs"


@pytest.mark.slow
def test_every_public_name_has_its_place(site):
    """Every name of a module is described on its page or links to its description; every method of a class too."""
    pages = {room: (site / "reference" / f"{room}.html").read_text("utf-8") for room in reference.ROOMS}
    places = {name for page in pages.values() for name in re.findall(r'id="([\w.]+)"', page)}
    lacking = []
    for room in reference.ROOMS:
        module = importlib.import_module(room)
        for name in reference.public_names(module):
            thing = getattr(module, name)
            if inspect.ismodule(thing):
                lacking += [] if f'href="{thing.__name__}.html"' in pages[room] else [f"{room}.{name}"]
                continue
            described = [place for place in places if place.endswith(f".{name}") or place == name]
            linked = [place for place in described if place.startswith(f"{room}.") or f"#{place}" in pages[room]]
            if not linked:
                lacking.append(f"{room}.{name}")
            elif inspect.isclass(thing) and thing.__module__.startswith("prograd_fast"):
                lacking += [f"{linked[0]}.{m}" for m in own_methods(thing) if f"{linked[0]}.{m}" not in places]
    assert sorted(set(lacking)) == []
    for optimizer in ("ProGrad", "ProGradAdamW", "ProGradSGD"):
        expected = {f"prograd_fast.{optimizer}.{m}" for m in ("backward", "step", "conflict", "accumulate")}
        assert expected <= places
        assert "add_param_group" in pages["prograd_fast"]


def own_methods(thing: type) -> set[str]:
    """Public methods and properties with a docstring, of a class and its bases in this library."""
    return {
        name
        for base in thing.__mro__
        if base.__module__.startswith("prograd_fast")
        for name, value in vars(base).items()
        if not name.startswith("_") and (callable(value) or isinstance(value, property)) and inspect.getdoc(value)
    }


@pytest.mark.slow
def test_no_page_loads_from_another_server(site):
    loaded = []
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        links = [link for link in LINKED.findall(text) if 'rel="canonical"' not in link]
        found = [*LOADED.findall(text), *(address for link in links for address in re.findall(r'href="([^"]+)"', link))]
        loaded += [(page.name, address) for address in found]
    loaded += [(style.name, a) for style in site.rglob("*.css") for a in STYLED.findall(style.read_text("utf-8"))]
    assert len(loaded) > 100
    assert [entry for entry in loaded if re.match(r"(https?:)?//", entry[1])] == []


def until(happened: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether something happens in this time."""
    latest = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > latest:
            return False
        time.sleep(0.2)
    return True


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_pages_in_a_browser(site, tmp_path):
    """No request leaves the files, nothing is missing, no page is wider than a phone, and the search finds."""
    with Browser(tmp_path) as browser:
        for page in ("index", "concepts", "methods/prograd", "reference/prograd_fast", "reference/command"):
            for width in (1280, 390):
                browser.open(site / f"{page}.html", width)
                assert [address for address in browser.requests if not address.startswith(("file:", "data:"))] == []
                assert browser.complaints == [], page
                assert browser.run("document.documentElement.scrollWidth") == width
                blocks, buttons = (f"document.querySelectorAll('{one}').length" for one in ("pre", "pre ~ button.copy"))
                assert browser.run(blocks) == browser.run(buttons), page
        browser.open(site / "index.html")
        browser.run("document.querySelector('button.copy').click(); 1")
        assert until(lambda: browser.run("document.querySelector('button.copy').textContent") != "copy")
        browser.open(site / "search.html")
        browser.run("location.assign('search.html?q=projection'); 1")
        assert until(lambda: browser.run("document.querySelectorAll('#search-results li a').length") > 3)
