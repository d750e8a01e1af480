"""Guards what a user is told about what is not installed: the reason is right, and the command that is named works."""

import importlib
import json
from types import SimpleNamespace

import pytest
import torch

from prograd_fast import backends, doctor, installation
from prograd_fast.backends import extension
from tests.paths import REPOSITORY

RECORDS = [
    "torch>=2.6",
    'numpy>=1.24; extra == "clip"',
    'Pillow>=10 ; extra == "clip"',
    'prograd-fast[clip,heic]; extra == "cli"',
    'rich>=13; python_version >= "3.10" and extra == "cli"',
    'pillow-heif>=1.8; extra == "heic"',
]


@pytest.fixture
def recorded(monkeypatch):
    """What the installation has recorded, and which packages are there."""
    monkeypatch.setattr(installation, "requires", lambda name: RECORDS)
    monkeypatch.setattr(installation, "version_of", {"numpy": "2.0", "rich": "13.0"}.get)


@pytest.mark.usefixtures("recorded")
def test_only_what_is_missing_is_installed():
    assert installation.to_install("clip") == 'pip install "Pillow>=10"'
    assert installation.to_install("cli") == 'pip install "Pillow>=10" "pillow-heif>=1.8"'  # extras inside, too
    every = {"numpy": ">=1.24", "Pillow": ">=10", "pillow-heif": ">=1.8", "rich": ">=13"}
    assert installation.requirements("cli") == every


def test_a_package_that_is_there_and_cannot_be_imported_is_named(monkeypatch):
    monkeypatch.setattr(installation, "requires", lambda name: RECORDS)
    monkeypatch.setattr(installation, "version_of", lambda name: "1.0")
    assert installation.to_install("heic") == 'pip install "pillow-heif>=1.8"'


def test_no_command_looks_for_prograd_fast_on_an_index(monkeypatch):
    """Whoever takes the name there would run code on the user's machine."""
    for module in (installation, doctor):
        monkeypatch.setattr(module, "version_of", lambda name: None)
    text = doctor.show_config()
    assert "prograd-fast[" not in text
    for name in ("clip", "cli", "demo", "heic", "log", "onnx"):
        assert " prograd-fast" not in installation.to_install(name).replace('"', "")
        assert any(line.endswith(installation.to_install(name)) for line in text.splitlines()), name


@pytest.mark.parametrize(
    ("record", "compile_", "demo"),
    [
        ({"dir_info": {}}, "{tree}", "{tree}/prograd_fast_demo"),
        ({"dir_info": {"editable": True}}, "--editable {tree}", "{tree}/prograd_fast_demo"),
        ({"archive_info": {}}, "PATH, where PATH is the source tree", "PATH/prograd_fast_demo, where PATH is"),
        (None, "PATH, where PATH is the source tree", "PATH/prograd_fast_demo, where PATH is the source tree"),
    ],
    ids=["folder", "editable", "wheel", "nothing"],
)
def test_commands_name_the_source_tree_where_it_is_known(monkeypatch, record, compile_, demo):
    text = None if record is None else json.dumps({"url": REPOSITORY.as_uri(), **record})
    monkeypatch.setattr(installation, "distribution", lambda name: SimpleNamespace(read_text=lambda file: text))
    expected = compile_.format(tree=REPOSITORY)
    assert installation.to_compile().startswith(f"pip install --force-reinstall --no-deps {expected}")
    assert installation.to_install_demo().startswith(f"pip install {demo.format(tree=REPOSITORY)}")


def test_a_source_tree_that_is_gone_is_not_named(monkeypatch, tmp_path):
    text = json.dumps({"url": (tmp_path / "gone").as_uri(), "dir_info": {}})
    monkeypatch.setattr(installation, "distribution", lambda name: SimpleNamespace(read_text=lambda file: text))
    assert "PATH" in installation.to_compile()


def loaded(monkeypatch, tmp_path, outcome, note=None) -> tuple[object, str | None]:
    """The module and the reason where an import of the compiled module ends so."""

    def import_module(name):
        if isinstance(outcome, Exception):
            raise outcome
        return SimpleNamespace(build_facts=lambda: {"torch": outcome})

    file = tmp_path / "not_compiled.txt"
    if note is not None:
        file.write_text(note)
    monkeypatch.setattr(extension, "_NOT_COMPILED", file)
    with monkeypatch.context() as patched:
        patched.setattr(importlib, "import_module", import_module)
        return extension._load()


@pytest.mark.parametrize(
    ("outcome", "note", "reason"),
    [
        (ModuleNotFoundError("no"), "a C++ compiler was not found", "were not compiled: a C++ compiler was not found"),
        (ModuleNotFoundError("no"), None, "were not compiled: nobody has tried"),
        (ImportError("/a/_C.so: undefined symbol: x", path="/a/_C.so"), None, "cannot load them: undefined symbol: x"),
        ("1.13.1+cu117", None, f"compiled for PyTorch 1.13, and this is {torch.__version__}"),
        ("99.0.0", None, f"compiled for PyTorch 99.0, and this is {torch.__version__}"),
    ],
)
def test_a_module_of_another_pytorch_is_not_used(monkeypatch, tmp_path, outcome, note, reason):
    module, why = loaded(monkeypatch, tmp_path, outcome, note)
    assert module is None
    assert reason in str(why)


def test_a_patch_release_of_the_same_pytorch_is_used(monkeypatch, tmp_path):
    major, minor = torch.__version__.split(".")[:2]
    module, why = loaded(monkeypatch, tmp_path, f"{major}.{minor}.99+cpu")
    assert module is not None
    assert why is None


def test_the_reason_comes_with_the_command(monkeypatch):
    monkeypatch.setattr(extension, "_WHY_NOT", "the C++ kernels were not compiled: a C++ compiler was not found")
    reason = backends.missing("cpu")
    assert reason is not None
    assert reason.startswith("the C++ kernels were not compiled: a C++ compiler was not found. With a C++ compiler")
    assert reason.endswith(f"run: {installation.to_compile()}")
    assert any(line.startswith("backend cpu") and reason in line for line in doctor.show_config().splitlines())


@pytest.mark.parametrize(("note", "unwanted"), [("PROGRAD_FAST_BUILD=none", True), ("cmake was not found", False)])
def test_who_asked_for_no_kernels_is_not_told_at_every_start(monkeypatch, tmp_path, note, unwanted):
    loaded(monkeypatch, tmp_path, ModuleNotFoundError("no"), note)
    assert extension.unwanted() == unwanted
