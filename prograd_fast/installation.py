"""How this package was installed, and the commands that install what it lacks.

No index of packages has prograd-fast, so the commands do not name it. They name what an extra lacks, package by
package, and leave prograd-fast and its compiled kernels as they are; or the source tree, to compile the kernels.
"""

import json
import re
import shlex
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

_NAME = "prograd-fast"
_REQUIREMENT = re.compile(
    r"(?P<package>[\w.-]+)(\[(?P<extras>[\w,]+)\])?(?P<bounds>[^;]*);.*extra == [\"'](?P<extra>\w+)[\"']"
)


def version_of(package: str) -> str | None:
    """The installed version of a package; None where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def requirements(extra: str) -> dict[str, str]:
    """The packages of an extra with their bounds, such as {"numpy": ">=1.24"}; those of extras inside of it, too."""
    found: dict[str, str] = {}
    for requirement in filter(None, map(_REQUIREMENT.match, requires(_NAME) or ())):
        if requirement["extra"] == extra:
            if requirement["package"] == _NAME:
                for inner in requirement["extras"].split(","):
                    found |= requirements(inner)
            else:
                found[requirement["package"]] = requirement["bounds"].strip()
    return found


def to_install(extra: str) -> str:
    """The command that installs what an extra lacks, such as `pip install "onnx>=1.16" "onnxruntime>=1.17"`.

    Where nothing is missing, it names the whole extra: what is there cannot be imported.
    """
    packages = requirements(extra)
    lacking = {package: bounds for package, bounds in packages.items() if version_of(package) is None} or packages
    return "pip install " + " ".join(f'"{package}{bounds}"' for package, bounds in lacking.items())


def to_install_demo() -> str:
    """The command that installs the embedded pictures and models."""
    return f"pip install {_in_source_tree('prograd_fast_demo')}"


def to_compile() -> str:
    """The command that installs prograd-fast anew and compiles its kernels."""
    editable = "--editable " if _origin().get("dir_info", {}).get("editable") else ""
    return f"pip install --force-reinstall --no-deps {editable}{_in_source_tree()}"


def _origin() -> dict[str, Any]:
    """The note that pip has left of where it installed from: "url", and for a folder "dir_info"."""
    origin: dict[str, Any] = json.loads(distribution(_NAME).read_text("direct_url.json") or "{}")
    return origin


def _in_source_tree(folder: str = "") -> str:
    """A path in the source tree that pip has installed from; where it is unknown or gone, PATH, and what that is."""
    origin = _origin()
    tree = Path(url2pathname(urlsplit(origin.get("url", "")).path))
    if "dir_info" in origin and (tree / folder).is_dir():
        return shlex.quote(str(tree / folder))
    return f"{Path('PATH', folder)}, where PATH is the source tree of {_NAME}"
