"""The facts about the visible GPUs that decide whether kernels run on them. To ask for them initialises CUDA."""

from collections.abc import Callable

import torch

OLDEST = (8, 0)  # compute capability: Ampere, the first with bfloat16 and asynchronous copies


def why_not(covers: Callable[[tuple[int, int]], bool], remedy: str) -> str | None:
    """Say why kernels cannot run on the GPUs of this process; None where they can.

    Operators belong to a type of device, not to one: a single GPU that is too old rules all of them out.

    Args:
        covers: whether the kernels run on a compute capability.
        remedy: what to do where they do not, a sentence.
    """
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU. Install its CUDA build and the NVIDIA driver, or use another backend."
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if not covers(capability):
            major, minor = capability
            return (
                f"GPU {index}, {torch.cuda.get_device_name(index)}, has compute capability {major}.{minor}, which the "
                f"kernels do not run on. {remedy} Or hide this GPU with CUDA_VISIBLE_DEVICES."
            )
    return None


def compiled_for(architectures: str) -> Callable[[tuple[int, int]], bool]:
    """Whether machine code for these architectures, as CMake names them, runs on a compute capability.

    "90-real" has code for 9.0, which runs on 9.x from there on; "100" also PTX, which any later GPU compiles.
    """
    code, ptx = [], []
    for name in architectures.split():
        number = "".join(filter(str.isdigit, name))
        version = int(number[:-1]), int(number[-1])
        code.append(version)
        if not name.endswith("-real"):
            ptx.append(version)

    def covers(capability: tuple[int, int]) -> bool:
        native = any(major == capability[0] and minor <= capability[1] for major, minor in code)
        return native or any(version <= capability for version in ptx)

    return covers
