"""A page for each method, from its class: docstring, settings, presets."""

import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from prograd_fast.methods import METHODS, Method, PromptTuning
from prograd_fast.methods.cached_head import HeadMethod
from tools.site.docstrings import head_and_sections, items

_LONGEST = 60  # characters of a value in a table


def write(folder: Path) -> None:
    """Write the pages and their list.

    Args:
        folder: Their folder in the site's source.
    """
    folder.mkdir(parents=True)
    for method in METHODS:
        (folder / f"{method.name}.md").write_text(page(method), encoding="utf-8")
    (folder / "index.md").write_text(_index(), encoding="utf-8")


def _index() -> str:
    rows = [
        f"| [{m.title}]({m.name}.md) | {m.year or '-'} | {_cell(m.trains)} | {_cell(m.keeps)} | {_yes(m)} |"
        for m in METHODS
    ]
    return "\n".join(
        [
            "# Every method",
            "",
            f"The library has {len(METHODS)} methods, zero-shot included. Each page has what a method trains and",
            "keeps, its formula and source, its settings, and those that its authors published.",
            "",
            "| method | year | trains | keeps | names new classes |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
            "```{toctree}",
            ":hidden:",
            "",
            *(method.name for method in METHODS),
            "```",
            "",
        ]
    )


def page(method: type[Method]) -> str:
    """The page of one method, in Markdown."""
    module = inspect.getmodule(method)
    assert module is not None
    about = (inspect.getdoc(module) or "").splitlines()[0]
    head, _ = head_and_sections(inspect.getdoc(method) or "")
    path = method.__module__.replace(".", "/")
    return "\n".join(
        [
            f"# {method.title}",
            "",
            about,
            "",
            f"| | {method.title} |",
            "| --- | --- |",
            f"| published | {method.year or 'not'} |",
            f"| trains | {_cell(method.trains)} |",
            f"| keeps | {_cell(method.keeps)} |",
            f"| names new classes | {_yes(method)} |",
            f"| chooses by validation | {_cell(method.chooses) or 'nothing'} |",
            f"| class | {{py:class}}`prograd_fast.methods.{method.__name__}` |",
            f"| file | `{path}.py` |",
            "",
            "## How it works",
            "",
            _linked(head),
            "",
            *_kind(method),
            "## How to use it",
            "",
            "```sh",
            f"prograd-fast train --data my_pictures --method {method.name} --out runs/{method.name}",
            "```",
            "",
            "```python",
            "from prograd_fast.methods import method_named",
            "",
            *(f"{line}" for line in _python(method)),
            "```",
            "",
            "## Settings",
            "",
            "`--set NAME=VALUE` changes one on the command line.",
            "",
            "| setting | default | meaning |",
            "| --- | --- | --- |",
            *_settings(method),
            "",
            *_presets(method),
        ]
    )


def _python(method: type[Method]) -> list[str]:
    if not method.presets:
        return [f'method = method_named("{method.name}", {{}})']
    return [
        f'default = method_named("{method.name}", {{}})',
        f'published = method_named("{method.name}", {{}}, preset="{next(iter(method.presets))}")',
    ]


def _kind(method: type[Method]) -> list[str]:
    """A sentence on the family of a method, with a link to what its members share."""
    if issubclass(method, PromptTuning):
        return ["It is [prompt tuning](../concepts.md#prompt-tuning), and shares its settings with the others.", ""]
    if issubclass(method, HeadMethod):
        return ["It is [a head on cached features](../methods.md): both towers stay as they are.", ""]
    return []


def _settings(method: type[Method]) -> list[str]:
    meanings: dict[str, str] = {}
    for base in reversed(method.__mro__):
        if base.__module__.startswith("prograd_fast"):
            _, sections = head_and_sections(inspect.cleandoc(base.__doc__ or ""))
            for names, text in items(sections.get("Attributes", [])).items():
                meanings.update(dict.fromkeys(names.split(", "), text))
    return [f"| `{f.name}` | `{_value(f.default)}` | {_cell(meanings.get(f.name, ''))} |" for f in fields(method)]


def _presets(method: type[Method]) -> list[str]:
    if not method.presets:
        return ["Its authors' settings are the defaults, or are not published as a set.", ""]
    default = {f.name: f.default for f in fields(method)}
    rows = []
    for name, values in method.presets.items():
        changed = [f"`{k}={_value(v)}`" for k, v in values.items() if v != default[k]]
        rows.append(f"| `{name}` | {', '.join(changed) or 'the defaults'} |")
    return [
        "## Published settings",
        "",
        "`--preset NAME` takes them. A setting that is not named has its default.",
        "",
        "| preset | settings |",
        "| --- | --- |",
        *rows,
        "",
    ]


def _value(value: Any) -> str:
    text = repr(value).replace("|", "\\|")
    return text if len(text) <= _LONGEST or not isinstance(value, tuple) else f"{len(value)} of them"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _yes(method: type[Method]) -> str:
    return "yes" if method.names_new_classes else "no"


def _linked(text: str) -> str:
    """The source of a docstring as links: papers on arXiv, code on GitHub."""
    text = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    return re.sub(r"\bcode ([\w-]+/[\w.-]*\w)", r"code [\1](https://github.com/\1)", text)
