"""Compiles what is in this folder, and csrc/cuda as plain C++."""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.paths import REPOSITORY

BUILD = REPOSITORY / "build" / "simt"
FLAGS = [
    *("-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
    "-fno-gnu-unique",  # several libraries are loaded in one process, each with variables of its own
    "-U_FORTIFY_SOURCE",  # its longjmp refuses to switch stacks
]


def compiler() -> str | None:
    """The C++ compiler, or None; simt.h switches stacks as Linux does it."""
    if sys.platform != "linux":
        return None
    return os.environ.get("CXX") or shutil.which("g++")


@contextmanager
def one_process_at_a_time() -> Iterator[None]:
    """What another worker of the tests compiles may be the same."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@one_process_at_a_time()
def compile_cpp(sources: Sequence[Path], includes: Sequence[Path], name: str) -> Path:
    """Compile and link, "NAME.so" as a library; what was compiled from the same text before is used again.

    Two compilers run at a time: the machines that run the tests have two cores.
    """
    command = [compiler() or "g++", *FLAGS, *(f"-I{folder}" for folder in includes), "-x", "c++"]
    objects, missing = [], []
    for source in sources:
        text = subprocess.run([*command, "-E", "-P", source], check=True, capture_output=True).stdout
        objects.append(BUILD / f"{source.stem}-{hashlib.sha256(text + repr(FLAGS).encode()).hexdigest()[:16]}.o")
        if not objects[-1].exists():
            missing.append((source, objects[-1]))
    for pair in range(0, len(missing), 2):
        running = [
            (subprocess.Popen([*command, "-c", source, "-o", f"{target}.{os.getpid()}"]), target)
            for source, target in missing[pair : pair + 2]
        ]
        for process, target in running:
            assert process.wait() == 0, f"{target.name}: does not compile"
            Path(f"{target}.{os.getpid()}").rename(target)
    digest = hashlib.sha256(repr(objects).encode()).hexdigest()[:16]
    result = BUILD / f"{digest}-{name}"
    if not result.exists():
        temporary = f"{result}.{os.getpid()}"
        link = ["-shared"] if name.endswith(".so") else []
        subprocess.run([command[0], *objects, *link, "-o", temporary], check=True)
        Path(temporary).rename(result)
    return result


def changed_sources(file: str, old: str, new: str, folder: Path) -> Path:
    """A copy of csrc with one change, and float32 only: that takes a quarter of the time to compile."""
    sources, csrc = REPOSITORY / "csrc", folder / "csrc"
    for source in [path for room in ("common", "formulas", "cuda") for path in (sources / room).glob("*.[hc]*")]:
        text = source.read_text()
        if source.name == file:
            assert text.count(old) == 1, f"expected {old!r} once in {file}"
            text = text.replace(old, new)
        if source.name == "storage.cuh":
            text = re.sub(r"return function\(Type<(?!float>)\w+>\{\}\)", "return", text)
        copy = csrc / source.relative_to(sources)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text)
    return csrc
