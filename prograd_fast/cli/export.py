"""The commands `export` and `interpret`, which take a run's classifier and its prompt to other places."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from prograd_fast.cli.folders import check_writable
from prograd_fast.cli.models import open_model_of
from prograd_fast.cli.options import OtherModel, OtherWeights, Run, Trust
from prograd_fast.terminal.output import Table, console, say

if TYPE_CHECKING:
    from prograd_fast.clip import LoadedClip
    from prograd_fast.methods import Learner, Method

_OUT = "Write to this file, or to classifier.* in this folder."
_TO = "open_clip: weight matrix and prompts, safetensors. numpy: the same, .npz. onnx: image tower and classifier."
_SUFFIX = {"open_clip": ".safetensors", "numpy": ".npz", "onnx": ".onnx"}


class Form(str, Enum):
    """The form of an exported file."""

    open_clip = "open_clip"
    numpy = "numpy"
    onnx = "onnx"


def export(
    run: Run,
    to: Annotated[Form, Option(help=_TO)],
    out: Annotated[Path, Option(metavar="FILE|DIR", help=_OUT)],
    model: OtherModel = None,
    pretrained: OtherWeights = None,
    trust: Trust = False,
) -> None:
    """Write the classifier of a run for other libraries, with its class names and with how to use it.

    Example: [bold]prograd-fast export runs/mine --to onnx --out mine.onnx[/bold]
    """
    from prograd_fast.export import Exported, write_numpy, write_onnx, write_open_clip

    file = _file(out, to.value)
    check_writable(file.parent)
    record, clip, method, learner = _open(run, model, pretrained, trust)
    exported = Exported.of(record, method, learner, clip)
    file.parent.mkdir(parents=True, exist_ok=True)
    if to is Form.open_clip:
        usage = write_open_clip(file, exported)
    elif to is Form.numpy:
        usage = write_numpy(file, exported)
    else:
        usage = write_onnx(file, exported, clip, learner.scores(exported.classifier.class_names))
    say(f"Wrote {file}: {len(exported.classifier.class_names)} classes. The file itself says how to use it, too:")
    for line in usage.splitlines():
        say(line)


def interpret(
    run: Run,
    top: Annotated[int, Option(min=1, help="Show so many words of each kind.")] = 3,
    json: Annotated[Path | None, Option(metavar="FILE", help="Write them to this file, too.")] = None,
    model: OtherModel = None,
    pretrained: OtherWeights = None,
    trust: Trust = False,
) -> None:
    """Show the words of the vocabulary that are nearest to each learned context token.

    Example: [bold]prograd-fast interpret runs/mine --top 5[/bold]
    """
    from prograd_fast.export import nearest_words
    from prograd_fast.methods import PromptTuningLearner
    from prograd_fast.training import write_json

    if json is not None:
        check_writable(json.parent, "--json")
    _, clip, method, learner = _open(run, model, pretrained, trust)
    if not isinstance(learner, PromptTuningLearner):
        raise ValueError(f"{run} is a run of {method.name}, which learns no context tokens: there is nothing to read")
    net = learner.net
    tokens = nearest_words(net.prompt.ctx, net.tower.embedding.weight, clip.tokenizer, top)
    table = Table("token", "length", "nearest by cosine", "nearest by distance")
    for i, token in enumerate(tokens, start=1):
        near = (", ".join(f"{word.text} {word.value:.2f}" for word in words) for words in token[1:])
        table.add_row(str(i), f"{token.norm:.2f}", *near)
    words = len(net.tower.embedding.weight)
    say(f"The {len(tokens)} context tokens of {run} among {words} words; a hyphen marks a word's first part:")
    console.print(table)
    beside = [name for name in learner.module.state_dict() if name != "ctx"]
    if beside:
        say(f"{method.title} also learned {', '.join(beside)}, for which there are no words.")
    if json is not None:
        rows = [
            {
                "norm": token.norm,
                "cosine": [word._asdict() for word in token.by_cosine],
                "distance": [word._asdict() for word in token.by_distance],
            }
            for token in tokens
        ]
        json.parent.mkdir(parents=True, exist_ok=True)
        write_json(json, {"method": method.name, "model": clip.name, "tokens": rows})
        say(f"Wrote {json}")


def _file(out: Path, to: str) -> Path:
    """The file to write; ValueError where `out` ends as a file of another form."""
    suffix = _SUFFIX[to]
    if out.is_dir() or out.suffix.lower() not in _SUFFIX.values():
        return out / f"classifier{suffix}"
    if out.suffix.lower() != suffix:
        raise ValueError(f"--out {out}: expected a name that ends in {suffix} for --to {to}, or a folder")
    return out


def _open(
    run: Path, model: str | None, pretrained: str | None, trust: bool
) -> tuple[dict[str, Any], "LoadedClip", "Method", "Learner"]:
    """A run at work on the CPU."""
    from prograd_fast.training import load_run, open_run

    clip = open_model_of(run, load_run(run)[0], model, pretrained, trust, "cpu")
    record, method, learner = open_run(run, clip)
    return record, clip, method, learner
