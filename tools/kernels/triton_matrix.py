"""Compile every Triton kernel with every Triton that a user may have, without a GPU and without its PyTorch.

Of each minor release from 3.1 on, which PyTorch 2.5 brought, the last one is installed into a scratch folder, and a
process that finds it before the installed one compiles the cases of `triton_gate.py` for sm_90; with --few, as many as
it takes to have every kernel. Releases that the backend takes must compile all of them and hand over every
hyper-parameter as the float64 that the kernel declares; of older ones `missing()` must give the reason.

    python tools/kernels/triton_matrix.py              all releases that the package index has
    python tools/kernels/triton_matrix.py 3.4.0        some of them
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FIRST = (3, 1)
ARCH = 90
REPOSITORY = Path(__file__).parents[2]


class NoIndexError(RuntimeError):
    """The package index cannot be reached."""


def numbers(release: str) -> tuple[int, ...]:
    """The parts of a version."""
    return tuple(map(int, release.split(".")))


def releases() -> list[str]:
    """The last release of each minor one from FIRST on.

    Raises:
        NoIndexError: pip gets no answer.
    """
    answer = subprocess.run(
        [sys.executable, "-m", "pip", "index", "versions", "triton"], capture_output=True, text=True, check=False
    )
    listed = re.search(r"^Available versions: (.*)$", answer.stdout, re.MULTILINE)
    if listed is None:
        raise NoIndexError(answer.stderr.strip() or "pip lists no release of triton")
    found = sorted(filter(re.compile(r"\d+(\.\d+)+$").match, listed[1].split(", ")), key=numbers)
    return list({numbers(release)[:2]: release for release in found if numbers(release) >= FIRST}.values())


def install(release: str, folder: str) -> None:
    """Put the release alone into `folder`.

    Raises:
        NoIndexError: pip cannot.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, f"triton=={release}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise NoIndexError(answer.stderr.strip())


def check(release: str, few: bool = False) -> dict[str, Any]:
    """What the kernels make of a release: {"release", "missing", "kernels", "faults"}."""
    with tempfile.TemporaryDirectory() as scratch:
        install(release, f"{scratch}/triton")
        paths = [f"{scratch}/triton", str(REPOSITORY), str(Path(__file__).parent)]
        answer = subprocess.run(
            [sys.executable, "-c", f"import triton_matrix; triton_matrix.report({few})"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "TRITON_CACHE_DIR": f"{scratch}/cache"},
            capture_output=True,
            text=True,
            check=False,
        )
    if answer.returncode:
        return {"release": release, "missing": None, "kernels": 0, "faults": [answer.stderr.strip()[-2000:]]}
    return json.loads(answer.stdout.splitlines()[-1])


def report(few: bool = False) -> None:
    """Print the line that `check` reads, for the Triton that this process finds."""
    import triton

    from prograd_fast.backends.triton import OLDEST_TRITON, missing

    result: dict[str, Any] = {"release": triton.__version__, "missing": None, "kernels": 0, "faults": []}
    if numbers(triton.__version__)[:2] < OLDEST_TRITON:
        result["missing"] = missing()
        if f"Triton {triton.__version__} does not compile" not in (result["missing"] or ""):
            result["faults"].append(f"missing() does not name it: {result['missing']}")
    else:
        result["kernels"], result["faults"] = compile_all(few)
    print(json.dumps(result))


def few_cases() -> list[str]:
    """Cases of the gate that launch every kernel between them, the ones with most that is new first."""
    import triton_gate
    from triton.runtime.jit import JITFunction

    launched: dict[str, set[str]] = {case: set() for case in triton_gate.CASES}
    original = JITFunction.run
    try:
        for case, names in launched.items():
            JITFunction.run = lambda kernel, *args, names=names, **kwargs: names.add(kernel.__name__)
            triton_gate.CASES[case].launch()
    finally:
        JITFunction.run = original
    chosen, known = [], set[str]()
    while missing := set().union(*launched.values()) - known:
        chosen.append(max(launched, key=lambda case: len(launched[case] & missing)))
        known |= launched[chosen[-1]]
    return chosen


def compile_all(few: bool) -> tuple[int, list[str]]:
    """How many kernels compiled, and one line for each case or argument that is wrong."""
    import triton_gate

    faults: list[str] = []
    kernels = 0

    def found(name: str, kernel: Any) -> None:
        nonlocal kernels
        kernels += 1
        faults.extend(f"{case}: {fault}" for fault in rounded(name, kernel))

    with triton_gate.compiling(ARCH, found):
        for case in few_cases() if few else triton_gate.CASES:
            try:
                triton_gate.CASES[case].launch()
            except Exception as error:
                faults.append(f"{case}: {type(error).__name__}: {error}")
    return kernels, faults


def rounded(name: str, kernel: Any) -> list[str]:
    """The numbers that arrive as float32, which has no digits to spare for 1 - 0.999^t."""
    declared = {parameter.name for parameter in kernel.src.fn.params if "fp64" in str(parameter.annotation)}
    return [
        f"{name}: {number} arrives as {kind}"
        for number, kind in kernel.src.signature.items()
        if kind == "fp32" or (number in declared and kind != "fp64")
    ]


def main() -> int:
    """Check the releases, one line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("releases", nargs="*", help="of Triton; all that the index has if none is given")
    parser.add_argument("--few", action="store_true", help="only as many cases as it takes to have every kernel")
    arguments, status = parser.parse_args(), 0
    for release in arguments.releases or releases():
        begin = time.monotonic()
        result = check(release, arguments.few)
        what = result["missing"] or f"{result['kernels']} kernels"
        print(f"Triton {result['release']}: {what} ({time.monotonic() - begin:.0f} s)")
        for fault in result["faults"]:
            print(f"FAILED  Triton {release}: {fault}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    raise SystemExit(main())
