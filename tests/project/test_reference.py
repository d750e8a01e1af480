"""`make docs` writes a page with every public method of every public class, those of its base classes included."""

import importlib
import inspect
import re
import shlex

import pytest

import prograd_fast as pf
from tests.paths import REPOSITORY

ROOMS = ("functional", "losses", "rules", "clip", "data", "methods", "training", "export")


def documented(folder) -> dict[str, set[str]]:
    """The names that each page has, by module; the command is the Makefile's."""
    pdoc = importlib.import_module("pdoc")
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    (command,) = re.findall(r"\$\(BIN\)/pdoc (.*)", makefile)
    modules = [word for word in shlex.split(command) if word.lstrip("!").startswith("prograd_fast")]
    pdoc.render.configure(docformat="google", math=True)
    pdoc.pdoc(*modules, output_directory=folder)
    pages = [page for page in folder.rglob("*.html") if page.name != "index.html"]
    return {
        ".".join(page.relative_to(folder).with_suffix("").parts): set(re.findall(r'id="([\w.]+)"', page.read_text()))
        for page in pages
    }


@pytest.mark.slow
def test_every_public_method_is_on_a_page(tmp_path):
    pages = documented(tmp_path)
    lacking = []
    for module in ("prograd_fast", *(f"prograd_fast.{room}" for room in ROOMS)):
        room = importlib.import_module(module)
        for name in room.__all__:
            thing = getattr(room, name)
            if inspect.ismodule(thing):
                assert thing.__name__ in pages
                continue
            if not inspect.isclass(thing) or not thing.__module__.startswith("prograd_fast"):
                continue
            for base in thing.__mro__:
                if base.__module__.startswith("prograd_fast"):
                    own = [m for m, value in vars(base).items() if not m.startswith("_") and inspect.getdoc(value)]
                    methods = [m for m in own if callable(vars(base)[m]) or isinstance(vars(base)[m], property)]
                    lacking += [
                        f"{module}.{name}.{m}"
                        for m in methods
                        if f"{name}.{m}" not in pages[module]
                        and f"{base.__name__}.{m}" not in pages[module] | pages.get(base.__module__, set())
                    ]
    assert sorted(set(lacking)) == []
    for optimizer in (pf.ProGrad, pf.ProGradAdamW, pf.ProGradSGD):
        expected = {f"{optimizer.__name__}.{m}" for m in ("backward", "step", "conflict", "accumulate")}
        assert expected <= pages["prograd_fast"]
    assert sum(page.startswith("prograd_fast.backends") for page in pages) == 1
