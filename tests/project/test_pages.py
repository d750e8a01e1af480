"""The pages hold: their blocks and commands run, and the files that they name exist."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from prograd_fast import cli
from prograd_fast.cli.app import app
from tests.optim.frameworks import IGNORED, accelerators_forgotten
from tests.paths import REPOSITORY
from tests.project.pages import blocks, inline_code

# the changelog names files that are gone
PAGES = sorted({*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")} - {REPOSITORY / "CHANGELOG.md"})
NAMES = [page.relative_to(REPOSITORY).as_posix() for page in PAGES]
TEXTS = {name: page.read_text("utf-8") for name, page in zip(NAMES, PAGES, strict=True)}
# Pages that need more than a folder of pictures, such as two processes or a copy of the package: tests of their own run
# their blocks.
OWN_TESTS = {
    "docs/adding-a-method.md": "test_adding_a_method.py",
    "docs/adding-an-operator.md": "test_adding_an_operator.py",
    "docs/moving-from-coop.md": "test_moving_from_coop.py",
    "docs/scaling.md": "test_scaling.py",
    "docs/tutorial.md": "test_tutorial.py",
    "docs/what-can-go-wrong.md": "test_what_can_go_wrong.py",
    "docs/which-method.md": "test_which_method.py",
}
HERE = [name for name in NAMES if name not in OWN_TESTS]
# A path from the repository's root, such as `tests/ops/`; of `csrc/cuda/projection.*` some file exists. A colon follows
# the name of a file that the reader is to write.
PATH = re.compile(r"`((?:benchmarks|csrc|docs|prograd_fast|tests|tools)/[\w./*-]*)`(?!:)")
EXAMPLES = [
    pytest.param(block.text, id=f"{name}-{number}")
    for name in HERE
    for number, block in enumerate(block for block in blocks(TEXTS[name]) if block.language == "python")
]
# The words of each command on a page that a test runs, behind `prograd-fast`. Not those that a mark excuses, nor those
# that name weights of OpenAI's, which would be downloaded.
RUN = {
    name: [
        words[1:]
        for block in blocks(TEXTS[name])
        if not block.not_run
        for words in block.commands
        if words[0] == "prograd-fast" and "openai" not in words
    ]
    for name in HERE
}
# what a block may be beside Python and commands: outputs, formulas
SHOWN = ("", "text", "math")
TARGETS = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text("utf-8"), re.MULTILINE)


@pytest.mark.filterwarnings(*IGNORED)
@pytest.mark.parametrize("code", EXAMPLES)
def test_example(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    with accelerators_forgotten():
        exec(compile(code, "page", "exec"), {"__name__": "page"})


@pytest.mark.parametrize("name", HERE)
def test_every_block_is_of_a_kind_that_is_looked_at(name):
    """Differences and other languages need a test of their own; a mark that excuses a block has a reason for it."""
    for block in blocks(TEXTS[name]):
        assert block.language in (*SHOWN, "python", "sh"), block
        assert block.language != "python" or not block.not_run, block


@pytest.mark.parametrize("name", sorted(set(NAMES) & set(OWN_TESTS)))
def test_a_page_with_a_test_of_its_own_has_it(name):
    text = (REPOSITORY / "tests" / "project" / OWN_TESTS[name]).read_text("utf-8")
    assert f'"""{name}' in text


def understood(words: list[str]) -> None:
    """Look at a command without running it: program, subcommand and options, target, module or file, extras."""
    match words:
        case ["prograd-fast", *rest]:
            command = typer.main.get_command(app)
            while hasattr(command, "commands"):
                command = command.commands[rest.pop(0)]
            with command.make_context(words[0], rest):
                pass
        case ["make", *targets]:
            assert {target for target in targets if "=" not in target} <= set(TARGETS)
        case ["python" | ".venv/bin/python", "-m", module, *_]:
            assert importlib.util.find_spec(module), module
        case ["python" | ".venv/bin/python", file, *_]:
            assert (REPOSITORY / file).is_file(), file
        case ["torchrun", *rest]:
            understood(["prograd-fast", *rest[rest.index("prograd_fast") + 1 :]])
        case ["pip", "install", *packages]:
            extras = {extra for package in packages for extra in re.findall(r"^\.\[(.+)\]$", package)}
            text = (REPOSITORY / "pyproject.toml").read_text("utf-8")
            assert all(f"\n{extra} = [" in text for extra in extras), extras
        case ["pre-commit", "install"]:
            assert (REPOSITORY / ".pre-commit-config.yaml").is_file()
        case _:
            raise AssertionError(f"no test understands this command: {words}")


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_understood(name, tmp_path, monkeypatch):
    """Those of blocks whole; those within sentences may lack an argument, or have it in capitals."""
    monkeypatch.chdir(tmp_path)
    for block in blocks(TEXTS[name]):
        for words in block.commands:
            understood(words)
    for code in inline_code(TEXTS[name]):
        words = code.split()
        if words[0] == "make" and len(words) == 2:
            understood(words)
        elif words[0] == "prograd-fast" and len(words) > 1 and re.fullmatch(r"[a-z]+", words[1]):
            command, *rest = typer.main.get_command(app).commands[words[1]], *words[2:]
            if hasattr(command, "commands") and rest and rest[0] in command.commands:
                command, *rest = command.commands[rest[0]], *rest[1:]
            known = {option for parameter in getattr(command, "params", ()) for option in parameter.opts}
            given = {word.partition("=")[0] for word in rest if word.startswith("--")}
            assert given <= {*known, "--help"}, code


# ---- commands on folders of pictures

# Appended, so that a page takes seconds: a tiny model, two epochs. What the commands say and which files they write
# stays as it is; a model that is a file needs --trust.
SHORT = {
    "train": ["--model", "local-dir:{clip}", "--epochs", "2"],
    "compare": ["--model", "local-dir:{clip}", "--settings", "two_epochs.json"],
    **{command: ["--trust"] for command in ("evaluate", "predict", "export", "interpret")},
}
# as the pages say: some pictures cannot be read, and files are missing
EXIT_CODES = {"predict runs/plain messy/": 3, "data check caltech101": 3}


def draw_scene(folder):
    """The folders and pictures that the pages name; no picture is like another, which `data check` would tell."""
    random = np.random.RandomState(0)

    def draw(file, colour):
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.randint(0, 120, (24, 24, 3)) + np.array(colour)
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")

    for name in ("my_pictures", "other_pictures", "plain", "split/Train", "split/Test", "messy"):
        for kind, colour in {"ball": (130, 0, 0), "box": (0, 130, 0), "fence": (0, 0, 130)}.items():
            for i in range(13):
                draw(folder / name / kind / f"IMG_{i:04}.jpg", colour)
    (folder / "messy" / "fence" / "empty.jpg").touch()
    draw(folder / "photo.jpg", (130, 0, 0))
    draw(folder / "holiday" / "beach.jpg", (0, 130, 0))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, commands in RUN.items() if commands])
def test_commands_run(name, tmp_path, clip_dir, monkeypatch):
    """In the order of the page, in one folder, with the exit code that the page tells."""
    draw_scene(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("two_epochs.json").write_text(json.dumps({method: {"epochs": 2} for method in ("coop", "prograd")}))
    for words in RUN[name]:
        short = [option.format(clip=clip_dir) for option in SHORT.get(words[0], ())]
        line = " ".join(words)
        expected = next((code for start, code in EXIT_CODES.items() if line.startswith(start)), 0)
        assert cli.run([*words, *short]) == expected, line


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_exist(page):
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = [link for link in re.findall(r"\]\(([^)#]+)[)#]", text) if not link.startswith("http")]
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [path for path in PATH.findall(text) if not any(REPOSITORY.glob(path.rstrip("/")))] == []


def test_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text("utf-8").splitlines()) <= 150
