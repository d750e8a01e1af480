"""The files of the package prograd-fast-demo: the embedded picture sets and models."""

import importlib.util
from pathlib import Path

from prograd_fast.installation import to_install_demo

_PACKAGE = "prograd_fast_demo"


def demo_file(file: str, wanted_by: str) -> Path:
    """The path of a file of prograd-fast-demo.

    Args:
        file: its name in the folder `assets`.
        wanted_by: the name of the set or model that it belongs to.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or package.origin is None:
        raise ModuleNotFoundError(
            f"{wanted_by} is in the package prograd-fast-demo, which is not installed: {to_install_demo()}",
            name=_PACKAGE,
        )
    return Path(package.origin).with_name("assets") / file
