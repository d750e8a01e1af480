"""A prompt step on one process and on two that share the class names: strong and weak scaling.

`python -m benchmarks.ranks` prints a table. Two processes of one thread each run in turn, the first one alone and both
together, round by round, so that whatever else the machine does meets both sides alike; medians. The model is
emoji-lite. Strong scaling has the same names on one and on two processes, weak scaling twice as many on two.
"""

import argparse
import itertools
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import open_clip
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import prograd_fast as pf
from benchmarks.measure import load, machine

RANKS, BATCH, N_CTX = 2, 32, 4


def _product(x: Sequence[int], weight: Sequence[int], *args: Any, out_shape: Sequence[int], **kwargs: Any) -> int:
    return 2 * math.prod(x) * out_shape[-1]


PRODUCTS = {torch.ops.mkldnn._linear_pointwise: _product}  # of the packed tower on a CPU, which torch does not count
NAMES = (64, 1000, 21841)


def class_names(n: int) -> list[str]:
    """Pairs of words of ImageNet's names, as "lemon bucket"."""
    words = [name for name in dict.fromkeys(open_clip.IMAGENET_CLASSNAMES) if name.isalpha()]
    return [f"{one} {other}" for one, other in itertools.islice(itertools.permutations(words, 2), n)]


def step_of(n_names: int, shared: bool) -> Callable[[], None]:
    """Class features, both losses, one backward, projection and update."""
    model, tokenizer, _ = pf.clip.load_emoji_lite()
    torch.manual_seed(0)
    names = class_names(n_names)
    group = dist.group.WORLD if shared else None
    net = pf.clip.PromptedCLIP(model, tokenizer, names, N_CTX, class_group=group)
    generator = torch.Generator().manual_seed(1)
    images, guess = (torch.randn(n, model.text_projection.shape[1], generator=generator) for n in (BATCH, n_names))
    images, guess = F.normalize(images, dim=-1), F.normalize(guess, dim=-1)  # of a teacher: his price is paid once
    labels = torch.randint(0, n_names, (BATCH,), generator=generator)
    criterion, teacher = pf.DualLoss(), net.model.logit_scale.detach().exp() * images @ guess.T
    optimizer = pf.ProGradSGD([net.prompt.ctx], lr=0.002, momentum=0.9, process_group=_ALONE[0])

    def step() -> None:
        optimizer.backward_and_update(*criterion(net.logits(images), teacher, labels))

    return step


_ALONE: list[Any] = []  # the group of this process, made by all


def work(rank: int, folder: Path, names: Sequence[int], rounds: int) -> None:
    """As one of the processes: measure, and let the first one write what came out."""
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", store, rank=rank, world_size=RANKS, timeout=timedelta(minutes=30))
    _ALONE.append(dist.new_subgroups(1)[0])
    rows = []
    for n in names:
        sides = {"one": (n, False), "two": (n, True), "two, twice the names": (RANKS * n, True)}
        steps = {side: step_of(*of) for side, of in sides.items() if of[1] or rank == 0}
        flops: dict[str, int] = {}
        seconds: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        for round_ in range(rounds + 1):
            for side in sides:
                dist.barrier()
                wall, busy = time.perf_counter(), time.process_time()
                if side in steps and round_ == 0:  # warms up, too
                    with FlopCounterMode(display=False, custom_mapping=PRODUCTS) as counter:
                        steps[side]()
                    flops[side] = counter.get_total_flops()
                elif side in steps:
                    steps[side]()
                if round_:
                    seconds[side].append((time.perf_counter() - wall, time.process_time() - busy))
        figures = {
            side: [flops.get(side, 0), median(wall for wall, _ in s), median(busy for _, busy in s)]
            for side, s in seconds.items()
        }
        of_ranks: list[Any] = [None] * RANKS
        dist.all_gather_object(of_ranks, figures)
        worst = {side: [max(of_rank[side][i] for of_rank in of_ranks) for i in range(3)] for side in sides}
        rows.append((n, worst))
    if rank == 0:
        torch.save(rows, folder / "rows")
    dist.destroy_process_group()


def measured(names: Sequence[int], rounds: int) -> list[tuple[int, dict[str, list[float]]]]:
    """For each number of names: side -> operations, seconds of the wall and of the processor of the slowest process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.ranks", "--folder", folder, "--rounds", str(rounds)]
        command += ["--names", *map(str, names)]
        children = [subprocess.Popen([*command, "--rank", str(rank)]) for rank in range(RANKS)]
        codes = [child.wait() for child in children]
        if any(codes):
            raise RuntimeError("a process has failed, see above")
        rows: list[tuple[int, dict[str, list[float]]]] = torch.load(Path(folder, "rows"), weights_only=True)
        return rows


def table(rows: Sequence[tuple[int, dict[str, list[float]]]]) -> str:
    """Seconds of one process, and what two take of that: of operations, of the wall, of the processor."""
    lines = ["| names | side | GFLOP | s | s of processor | of one process's GFLOP | s | s of processor |"]
    lines.append("| --- " * 8 + "|")
    for n, sides in rows:
        for side, (flops, wall, busy) in sides.items():
            shares = [mine / one for mine, one in zip((flops, wall, busy), sides["one"], strict=True)]
            figures = " | ".join(f"{x:.3g}" for x in (flops / 1e9, wall, busy))
            lines.append(f"| {n} | {side} | {figures} | {' | '.join(f'{x:.2f}' for x in shares)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, or work for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", type=int, nargs="+", default=NAMES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder is not None:
        work(options.rank, options.folder, options.names, options.rounds)
        return
    before = load()
    rows = measured(options.names, options.rounds)
    print(f"{machine()['cpu']}, load before and after {before} and {load()}\n{table(rows)}")


if __name__ == "__main__":
    main()
