"""The kernels of csrc/cpu: C++ for AVX-512, AVX2 and any other CPU, chosen when the process starts."""

from collections.abc import Callable

from prograd_fast.backends.extension import EXTENSION, missing
from prograd_fast.ops.registry import SHORTCUTS

__all__ = ["device", "missing", "register"]


def device() -> str:
    """The type of device they run on."""
    return "cpu"


def register() -> Callable[[], None]:
    """Register them with the dispatcher; the result takes them out again."""
    EXTENSION.register_cpu()
    names = ("projected", "project_adamw_", "project_sgd_", "adamw")
    shortcuts = {name: getattr(EXTENSION, name) for name in names}
    SHORTCUTS.update(shortcuts)

    def unregister() -> None:
        EXTENSION.unregister_cpu()
        EXTENSION.release_memory()
        for name in shortcuts:
            del SHORTCUTS[name]

    return unregister
