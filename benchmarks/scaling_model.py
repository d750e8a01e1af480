"""A model on paper of a step on many GPUs: what it costs in operations, bytes and collectives. Nothing is measured.

`python -m benchmarks.scaling_model` prints the table of docs/scaling.md.

    step        = max(operations / rate, bytes / bandwidth) + launches · pause + collectives
    all-gather  = ⌈log₂ N⌉ · α + (N-1)/N · bytes / β
    all-reduce  = twice that

Source of the collectives' α-β model: Thakur, Rabenseifner & Gropp, Optimization of Collective Communication Operations
in MPICH, 2005: recursive doubling and halving, a start-up time for each of log₂ N rounds and bytes at the link's rate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

GPUS = (1, 8, 64)


@dataclass(frozen=True)
class Machine:
    """GPUs in nodes of eight; the rates that a step is assumed to come to, not those of a data sheet.

    Attributes:
        rate: operations of 16-bit products, per second.
        bandwidth: of memory, bytes per second.
        pause: between two launches, seconds.
        near: start-up time α in seconds and rate β in bytes per second, of links within a node.
        far: the same between nodes; a collective of more than one node goes at their pace.
        node: GPUs of a node.
    """

    rate: float = 300e12
    bandwidth: float = 3e12
    pause: float = 4e-6
    near: tuple[float, float] = (5e-6, 300e9)
    far: tuple[float, float] = (20e-6, 40e9)
    node: int = 8

    def gather(self, n_bytes: float, gpus: int) -> float:
        """Seconds until each of the GPUs has all of these bytes, of which each had its share."""
        alpha, beta = self.near if gpus <= self.node else self.far
        return math.ceil(math.log2(gpus)) * alpha + (gpus - 1) / gpus * n_bytes / beta

    def reduce(self, n_bytes: float, gpus: int) -> float:
        """Seconds of an all-reduce: a reduce-scatter, which is as dear as a gather, and a gather."""
        return 2 * self.gather(n_bytes, gpus)


@dataclass(frozen=True)
class Work:
    """Prompt tuning with ViT-B/32's text tower, cached image features and both losses.

    Attributes:
        names: class names.
        tokens: of a prompt, the mean.
        width, layers: of the text tower; 12·width² weights a layer, frozen, in 16 bits.
        features: of an image or a class.
        batch: pictures of a step, all ranks together.
        n_ctx: context tokens, the parameters that are trained, float32.
        launches: of a step, as `tests/gpu/test_launches.py` counts.
        of_each_picture: whether a picture has prompts of its own, as with CoCoOp.
    """

    names: int = 21_841
    tokens: int = 16
    width: int = 512
    layers: int = 12
    features: int = 512
    batch: int = 256
    n_ctx: int = 16
    launches: int = 226
    of_each_picture: bool = False

    def seconds(self, names: float, batch: float, machine: Machine) -> float:
        """Of one GPU that encodes some names and sees some pictures, alone."""
        weights = 12 * self.width**2 * self.layers
        rows = names * self.tokens * (batch if self.of_each_picture else 1)
        # forward, and two cotangents backward through weights that have no gradient
        operations = 2 * weights * rows * (1 + 2)
        # logits of all classes, and both cotangents of the class features
        operations += 2 * batch * self.names * self.features * (1 + 2)
        # about 16 activations of 16 bits a row and layer, in each of three passes, and the weights once in each
        n_bytes = (16 * 2 * rows * self.width * self.layers + 2 * weights) * 3
        n_bytes += 3 * 4 * batch * self.names
        return max(operations / machine.rate, n_bytes / machine.bandwidth) + self.launches * machine.pause

    def class_parallel(self, gpus: int, machine: Machine) -> tuple[float, float]:
        """Seconds of computing and of collectives: names are shared, all see all pictures.

        Features are gathered as float32, and the gradients of the context are summed over the ranks.
        """
        gathered = machine.gather(4 * self.names * self.features, gpus)
        return self.seconds(self.names / gpus, self.batch, machine), gathered + self._gradients(gpus, machine)

    def data_parallel(self, gpus: int, machine: Machine) -> tuple[float, float]:
        """Seconds of computing and of collectives: pictures are shared, all encode all names."""
        return self.seconds(self.names, self.batch / gpus, machine), self._gradients(gpus, machine)

    def _gradients(self, gpus: int, machine: Machine) -> float:
        return machine.reduce(2 * 4 * self.n_ctx * self.width, gpus)


@dataclass(frozen=True)
class Tuning:
    """Fine-tuning of a whole model against its own start: every GPU has a batch of its own.

    Attributes:
        parameters: trained, float32.
        tokens: or patches, of a GPU's batch.
    """

    parameters: float = 1e8
    tokens: int = 16_384

    def seconds(self, machine: Machine, parts: int = 1) -> float:
        """Of one GPU alone: a forward, two backwards, and the projection and update of its part of the parameters."""
        operations = 2 * self.parameters * self.tokens * (1 + 2 * 2)
        update = 4 * self.parameters / parts * (2 * 2 + 2 * 3)  # both gradients twice; p, m and v there and back
        return operations / machine.rate + update / machine.bandwidth

    def replicated(self, gpus: int, machine: Machine) -> tuple[float, float]:
        """Seconds of computing and of collectives: both gradients in one all-reduce."""
        return self.seconds(machine), machine.reduce(2 * 4 * self.parameters, gpus)

    def sharded(self, gpus: int, machine: Machine) -> tuple[float, float]:
        """Seconds of computing and of collectives, none of them hidden.

        Parameters are gathered in the forward and in both backwards, each gradient is reduced to its parts, and three
        numbers a tensor, some kilobytes, are summed.
        """
        return self.seconds(machine, gpus), 5 * machine.gather(4 * self.parameters, gpus) + machine.reduce(4096, gpus)


def table(gpus: Sequence[int] = GPUS, machine: Machine | None = None) -> str:
    """Milliseconds of a step by number of GPUs, and what they bring."""
    machine = machine or Machine()
    work, tuning = Work(), Tuning()
    of_pictures = Work(names=100, of_each_picture=True)
    sides = {
        f"{work.names:,} names, class-parallel": (work.class_parallel, False),
        f"{work.names:,} names, data-parallel": (work.data_parallel, False),
        f"{of_pictures.names} names for each picture, data-parallel": (of_pictures.data_parallel, False),
        f"{tuning.parameters / 1e6:.0f} M parameters, whole on each GPU": (tuning.replicated, True),
        f"{tuning.parameters / 1e6:.0f} M parameters, sharded": (tuning.sharded, True),
    }
    lines = ["| model, not measured | GPUs | computing, ms | collectives, ms | step, ms | times one GPU |"]
    lines.append("| --- " * 6 + "|")
    for side, (cost, grows) in sides.items():
        one = sum(cost(1, machine))
        for n in gpus:
            computing, collectives = cost(n, machine)
            speed = one / (computing + collectives) * (n if grows else 1)  # a batch for each, or one for all
            figures = " | ".join(f"{1e3 * x:.3g}" for x in (computing, collectives, computing + collectives))
            lines.append(f"| {side} | {n} | {figures} | {speed:.3g} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
