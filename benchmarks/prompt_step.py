"""The prompt step against the authors' formulation and against the arithmetic that it cannot do without.

`python -m benchmarks.prompt_step` prints the table and writes benchmarks/results/*-prompt-step.json. One process, sides
in turn, medians; memory in a process for each side. The floor is the time of the matrix products that a step must do
(`benchmarks.prompts.products`), each measured alone on its own shapes in the same rounds as the step: by the product
that the encoder uses, and by `torch.nn.functional.linear`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import open_clip
import torch

from benchmarks import prompts
from benchmarks.compare import Group, Row, Sizes, publish, report_of
from benchmarks.measure import DEVICE, Side, load
from benchmarks.peak_memory import peak_memory

OURS, AUTHORS, TASK_ALONE = "ours", "authors' formulation", "ours, task loss alone"
PACKED, PLAIN = "the encoder's product", "F.linear"


@dataclass(frozen=True)
class Works:
    """The sizes that the table is measured on; the defaults are the ones with targets."""

    small: int = 100
    large: int = 1000
    cocoop: tuple[int, int] = (100, 8)
    names: int = 21841
    max_memory: float = 4e9
    agreement: int = 3000  # classes that are computed both in chunks and at once
    image_tower: str = "RN50"
    shots: int = 16
    epochs: int = 50
    model: dict[str, Any] = field(default_factory=dict)  # of `prompts.clip`
    rounds: int = 3
    patience: float = 0.0


def _floor(group: Group, counts: dict[tuple[int, int, int], int], name: str) -> float:
    return sum(count * group.seconds(f"{name} {shape}") for shape, count in counts.items())


def _products(counts: Sequence[tuple[int, int, int]], dtype: torch.dtype, name: str) -> dict[str, Side]:
    return {f"{name} {shape}": prompts.product(*shape, dtype, name == PACKED) for shape in counts}


def _share_of_floor(group: Group, side: str, floor: float, name: str, target: float | None) -> None:
    step = group.seconds(side)
    bound = f"all but the matrix products takes {step - floor:.3g} s of {step:.3g} s"
    timing = group.timings[side]
    row = Row(group.work, side, f"floor by {name}", "s", step, floor, floor / step, target, floor / step)
    row = replace(row, noise=timing.noise, others=timing.others)
    group.rows.append(replace(row, bound_by=bound if row.missed else ""))


def small_step(works: Works, sizes: Sizes) -> Group:
    """The step on a hundred classes: against the authors, and what the second gradient costs."""
    n, model = works.small, works.model
    sides = {
        OURS: prompts.our_step(n, **model),
        AUTHORS: prompts.authors_step(n, **model),
        TASK_ALONE: prompts.our_step(n, both=False, **model),
    }
    counts = prompts.products(prompts.net_of(n, **model), 2)
    group = Group(f"step, C={n}", sides | _products(list(counts), torch.float32, PACKED), sizes, slow=True)
    floor = _floor(group, counts, PACKED)
    group.faster(OURS, AUTHORS, 20.0, bound=f"the matrix products alone take {floor:.3g} s")
    group.faster(OURS, TASK_ALONE, 1 / 1.6, bound=f"the matrix products alone take {floor:.3g} s")
    _share_of_floor(group, OURS, floor, PACKED, None)
    ours, theirs = prompts.gradients(n, **model)
    for name, got, want in zip(("task", "general"), ours, theirs, strict=True):
        error = float((got - want).abs().max() / want.abs().max())
        row = Row(f"{group.work}, {name} gradient", OURS, AUTHORS, "of the largest", error, 1e-5, 1e-5 / error, 1.0)
        group.rows.append(replace(row, bound_by="float32 rounding" if row.missed else ""))
    _memory(group, f"step, C={n}", "our_step", "authors_step", [n], 12.0)
    return group


def large_step(works: Works, sizes: Sizes) -> Group:
    """The step on ImageNet's classes: against the floor, and in bfloat16."""
    n, model = works.large, works.model
    half = model | {"dtype": torch.bfloat16}
    sides = {OURS: prompts.our_step(n, **model), "ours, bfloat16": prompts.our_step(n, **half)}
    counts = prompts.products(prompts.net_of(n, **model), 2)
    both = {f"{PACKED} bfloat16": torch.bfloat16, PACKED: torch.float32}
    alone = {f"{name} {s}": prompts.product(*s, dtype, True) for name, dtype in both.items() for s in counts}
    alone |= _products(list(counts), torch.float32, PLAIN)
    group = Group(f"step, C={n}", sides | alone, sizes, slow=True)
    floors = {name: _floor(group, counts, name) for name in (PACKED, PLAIN, f"{PACKED} bfloat16")}
    _share_of_floor(group, OURS, floors[PACKED], PACKED, 0.8)
    _share_of_floor(group, OURS, floors[PLAIN], PLAIN, 0.8)
    halves = floors[PACKED] / floors[f"{PACKED} bfloat16"]
    group.faster("ours, bfloat16", OURS, 2.0, bound=f"the matrix products alone are {halves:.2g} times as fast")
    _share_of_floor(group, "ours, bfloat16", floors[f"{PACKED} bfloat16"], f"{PACKED} bfloat16", None)
    if not model:
        mine = peak_memory("benchmarks.prompts:our_step", [n]) / 1e6
        row = Row(f"{group.work}, peak extra memory", OURS, "2 GB", "MB", mine, 2000.0, 2000 / mine, 1.0)
        group.rows.append(replace(row, bound_by="see the rows of the tower" if row.missed else ""))
    return group


def cocoop(works: Works, sizes: Sizes) -> Group:
    """CoCoOp's batch at once against its loop over images."""
    n, batch = works.cocoop
    sides = {
        OURS: prompts.our_cocoop(n, batch, **works.model),
        AUTHORS: prompts.authors_cocoop(n, batch, **works.model),
    }
    group = Group(f"CoCoOp, C={n} B={batch} M={prompts.COCOOP_CTX}", sides, replace(sizes, slow_rounds=3), slow=True)
    group.faster(OURS, AUTHORS, 15.0, bound="matrix products")
    return group


def many_names(works: Works, sizes: Sizes) -> Group:
    """A step under a memory limit, and that chunks change nothing but rounding."""
    n, limit = works.names, works.max_memory
    step = prompts.our_step(n, max_memory=limit, **works.model)
    work = f"step, C={n}, max_memory {limit / 1e9:.3g} GB"
    once = Group(work, {OURS: step}, replace(sizes, slow_rounds=1), slow=True)
    seconds = once.seconds(OURS)
    once.rows.append(Row(work, OURS, "", "s", seconds, seconds, 1.0, None, noise=once.timings[OURS].noise))
    nets = [prompts.net_of(works.agreement, max_memory=m, **works.model) for m in (limit / 8, None)]
    features = [net.class_features() for net in nets]
    weight = torch.randn(features[0].shape, generator=torch.Generator().manual_seed(4)).to(DEVICE)
    grads = [torch.autograd.grad((f * weight).sum(), net.prompt.ctx)[0] for f, net in zip(features, nets, strict=True)]
    for name, (got, want) in {"features": features, "gradient": grads}.items():
        error = max(float(((got - want).abs().max() / want.abs().max()).detach()), 1e-12)
        work = f"C={works.agreement} in chunks, {name}"
        row = Row(work, "in chunks", "at once", "of the largest", error, 1e-5, 1e-5 / error, 1.0)
        once.rows.append(replace(row, bound_by="float32 rounding" if row.missed else ""))
    return once


def whole_run(works: Works, sizes: Sizes, small: Group) -> Group:
    """A run with cached features against the authors' loop, from the measured steps and image forward."""
    config = open_clip.get_model_config(works.image_tower)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(**config).to(DEVICE).eval().requires_grad_(False)
    images = torch.randn(prompts.BATCH, 3, *([config["vision_cfg"]["image_size"]] * 2), device=DEVICE)
    name = f"{works.image_tower} forward of {prompts.BATCH} images"
    group = Group(name, {name: lambda: model.encode_image(images)}, replace(sizes, slow_rounds=3), slow=True)
    image = group.seconds(name)
    batches = works.shots * works.small // prompts.BATCH
    steps = batches * works.epochs
    mine = batches * image + steps * small.seconds(OURS)
    theirs = steps * (2 * image + small.seconds(AUTHORS))
    group.work = (
        f"{works.shots} shots, C={works.small}, {works.epochs} epochs, {works.image_tower}: from measured parts"
    )
    bound = f"{batches * image:.3g} s of ours are image features, computed once"
    row = Row(group.work, f"{OURS}, cached features", "authors' loop", "s", mine, theirs, theirs / mine, 30.0)
    row = replace(row, noise=group.timings[name].noise, others=group.timings[name].others)
    group.rows.append(replace(row, bound_by=bound if row.missed else ""))
    return group


def _memory(group: Group, work: str, ours: str, theirs: str, arguments: list[Any], target: float) -> None:
    mine, other = (peak_memory(f"benchmarks.prompts:{name}", arguments) / 1e6 for name in (ours, theirs))
    row = Row(f"{work}, peak extra memory", OURS, AUTHORS, "MB", mine, other, other / mine, target)
    group.rows.append(replace(row, bound_by="what the backward keeps" if row.missed else ""))


def compare(works: Works) -> dict[str, Any]:
    """Measure everything: date, machine, load average, rows and timings, ready for JSON."""
    before = load()
    sizes = Sizes(slow_rounds=works.rounds, patience=works.patience)
    small = small_step(works, sizes)
    groups = [small, large_step(works, sizes), cocoop(works, sizes), whole_run(works, sizes, small)]
    groups.append(many_names(works, sizes))
    return report_of(groups, before)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure the prompt step, print the table and write it.")
    parser.add_argument("--rounds", type=int, default=Works.rounds, help="samples of each side")
    parser.add_argument("--patience", type=float, default=0.0, help="seconds for each group to find quiet rounds in")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON")
    options = parser.parse_args()
    publish(compare(Works(rounds=options.rounds, patience=options.patience)), options.out, "-prompt-step", "of floor")


if __name__ == "__main__":
    main()
