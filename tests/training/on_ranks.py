"""The processes that torchrun starts for `test_on_ranks`; rank 0 writes what came out.

- `torchrun --nproc-per-node N -m tests.training.on_ranks every FILE`
- `torchrun --nproc-per-node 2 --max-restarts 1 -m tests.training.on_ranks dying FOLDER`
"""

import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist

from prograd_fast.cli.ranks import joined
from prograd_fast.methods import GradientLearner, prompt_tuning
from prograd_fast.training import TrainOptions, tune
from prograd_fast.training.checkpoint import Checkpoints
from prograd_fast.training.ranks import Ranks
from tests.methods.support import make_task, with_teacher
from tests.methods.test_every_method import small

# Of 20 pictures, batches of 13 leave a last one of 7: shares of 4 and 3, or 2 and 1. One of 19 leaves a single picture,
# which most ranks have no share of.
CASES = {
    "coop": ("coop", {"batch_size": 13}, TrainOptions()),
    "prograd": ("prograd", {"batch_size": 13, "n_ctx": 6}, TrainOptions()),
    "a single picture in the last batch": ("prograd", {"batch_size": 19, "n_ctx": 6}, TrainOptions()),
    "another teacher": ("prograd", {"batch_size": 13, "n_ctx": 6}, TrainOptions()),
    "clipped": ("prograd", {"clip_grad_norm": 0.1, "n_ctx": 6}, TrainOptions()),
    "accumulated": ("prograd", {"n_ctx": 6}, TrainOptions(accumulate=2)),
    "cocoop": ("cocoop", {"batch_size": 13, "lambda_": 1.0}, TrainOptions()),
    "kgcoop": ("kgcoop", {}, TrainOptions()),
    "lasp": ("lasp", {}, TrainOptions()),
    "subpt": ("subpt", {}, TrainOptions()),
    "variational": ("variational", {}, TrainOptions()),
    "promptsrc": ("promptsrc", {}, TrainOptions()),
    "tcp": ("tcp", {}, TrainOptions()),
    "dept": ("dept", {}, TrainOptions()),
    "proda": ("proda", {}, TrainOptions()),
    "anchoropt": ("anchoropt", {}, TrainOptions()),
    "xerm": ("xerm", {}, TrainOptions()),
    "nfl": ("nfl", {}, TrainOptions()),
    "clap": ("clap", {"batch_size": 13, "adaptive": True}, TrainOptions()),
    "lp++": ("lp++", {}, TrainOptions()),
    "prolip": ("prolip", {"batch_size": 13, "lambda_": 1.0, "lr": 1e-3}, TrainOptions()),
    "tip-adapter-f": ("tip-adapter-f", {"batch_size": 13}, TrainOptions()),
}
# Ranks share the class names of these once `WORTH_SHARING` is 0, and each sees all pictures then.
SHARED = (
    "coop",
    "prograd",
    "another teacher",
    "clipped",
    "accumulated",
    "lasp",
    "variational",
    "promptsrc",
    "tcp",
    "dept",
    "proda",
    "anchoropt",
    "nfl",
)


def trained(case: str, shared: bool | None = None) -> dict[str, list[float]]:
    """The figures of each step, and what was learned; `shared` tells whether the ranks are to share the classes."""
    name, settings, options = CASES[case]
    method = small(name, **settings)
    task = make_task(dtype=torch.float32, method=method)
    learner = method.start(with_teacher(task) if case == "another teacher" else task)
    assert isinstance(learner, GradientLearner)
    assert shared is None or learner.shares_classes == shared
    history = tune(learner, options=options)
    figures = {"task": history.task_loss, "general": history.general_loss, "accuracy": history.accuracy}
    return figures | {name: value.flatten().tolist() for name, value in learner.module.state_dict().items()}


def disagreement(rank: int) -> str:
    """What each rank is told when one has another list of classes."""
    try:
        Ranks.now().check_same({"lr": 0.1, "class_names": ["cat", "dog"] if rank else ["cat"]})
    except ValueError as error:
        return str(error)
    return "nothing"


def forgetful() -> str:
    """What each rank is told when all but the first one have lost the checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder) / "checkpoint", {}, every=0.0)
        taken = []

        def on_step() -> None:
            taken.append(1)
            if len(taken) == 3:
                raise KeyboardInterrupt

        with suppress(KeyboardInterrupt):
            tune(small("prograd").start(make_task(dtype=torch.float32)), on_step, checkpoints=checkpoints)
        if dist.get_rank():
            checkpoints.path.unlink()
        try:
            tune(small("prograd").start(make_task(dtype=torch.float32)), checkpoints=checkpoints)
        except ValueError as error:
            return str(error)
    return "nothing"


def dying(out: Path) -> None:
    """One rank dies in the sixth step; torchrun begins all of them again, and they go on from the checkpoint."""
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    with joined(out, torch.device("cpu")) as folder:
        taken = []

        def on_step() -> None:
            taken.append(1)
            if first and dist.get_rank() == 1 and len(taken) == 6:
                os._exit(1)

        learner = small("prograd", epochs=10, n_ctx=6).start(make_task(dtype=torch.float32))
        history = tune(learner, on_step, checkpoints=Checkpoints(folder / "checkpoint", {}, every=0.0))
        if folder == out:
            torch.save((first, history.task_loss, learner.module.state_dict()), out / "found")


def every(file: Path) -> None:
    """All methods, and what each rank is told where they disagree."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found: list[object] = [None] * dist.get_world_size()
    apart = {case: trained(case, False) for case in CASES}
    prompt_tuning.WORTH_SHARING = 0
    assert not small("cocoop").start(make_task()).shares_classes  # its class features depend on the picture
    dist.all_gather_object(
        found, (apart, {case: trained(case, True) for case in SHARED}, disagreement(rank), forgetful())
    )
    if rank == 0:
        torch.save(found, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"every": every, "dying": dying}[sys.argv[1]](Path(sys.argv[2]))
