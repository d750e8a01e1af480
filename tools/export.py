"""Writes the better run of each model to the assets, in open_clip's configuration format and fp16 safetensors."""

import json

import torch
from safetensors.torch import save

from prograd_fast.clip import emoji_lite
from tools import ASSETS
from tools.config import CONFIG
from tools.pretrain import RUNS


def export() -> None:
    """Writes, of each model's runs, the one with the highest `tools.pretrain.selection_accuracy`."""
    for name in emoji_lite.NAMES:
        reports = {path: json.loads(path.read_text()) for path in sorted(RUNS.glob(f"{name}-seed*.json"))}
        chosen = max(reports, key=lambda path: reports[path]["selection"])
        if reports[chosen]["rare"]:
            raise ValueError(
                f"{chosen}: class names with a hardly trained token: {reports[chosen]['rare']}; rename them"
            )
        trained = torch.load(chosen.with_suffix(".pt"), weights_only=True)
        stored = {
            key: (tensor.half() if tensor.is_floating_point() else tensor.int()).contiguous()
            for key, tensor in trained.items()
        }
        metadata = {"report": json.dumps(reports[chosen])}  # one key, as the order of several is not fixed
        (ASSETS / f"{name}.safetensors").write_bytes(save(stored, metadata))
        (ASSETS / f"{name}.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
        for path, report in reports.items():
            print(f"{name} seed {report['seed']}: {report['selection']:.2f} %{' (exported)' if path == chosen else ''}")


if __name__ == "__main__":
    export()
