"""One run of the command `train`: from pictures and a folder to a record, beside what the user is told."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prograd_fast.cli.pictures import tell_contradictions
from prograd_fast.cli.run_folder import is_finished, write_run
from prograd_fast.terminal import interrupts
from prograd_fast.terminal.output import progress, say
from prograd_fast.terminal.printable import printable

if TYPE_CHECKING:
    from prograd_fast.clip import LoadedClip
    from prograd_fast.data import PictureSet
    from prograd_fast.methods import Method
    from prograd_fast.training import TrainOptions


@dataclass(frozen=True)
class OneRun:
    """Everything that `train` was asked for, but for pictures and folder.

    Attributes:
        method: what is trained.
        clip: the model.
        shots: pictures per class; None: all.
        seed: which random draw of them.
        partition: which halves of base and new classes; None: all classes are learned.
        options: how it is trained.
        cache: folder of image features, or None.
        resume: whether it goes on from what is in the folder.
        force: whether it replaces what is in the folder.
        teacher: the model that the method keeps to, if that is another one.
        hint: how to go on after an interrupt, where there is no checkpoint yet.
    """

    method: "Method"
    clip: "LoadedClip"
    shots: int | None
    seed: int
    partition: int | None
    options: "TrainOptions"
    cache: Path | None
    resume: bool
    force: bool
    teacher: "LoadedClip | None" = None
    hint: str = ""

    def train(self, pictures: "PictureSet", out: Path, log: Path | None) -> dict[str, Any]:
        """Train, test and write the run, unless it is finished; its record."""
        from prograd_fast.training import (
            CHECKPOINT,
            all_shots,
            load_run,
            make_plan,
            plan_facts,
            run_facts,
            tensorboard,
            train_method,
        )

        shots = self.shots or all_shots(pictures, self.partition)
        plan = make_plan(pictures, shots, self.seed, self.partition)
        if self.resume and is_finished(
            out, run_facts(self.method, self.clip, plan_facts(pictures, plan), self.options, self.teacher)
        ):
            say(f"{out} is finished: nothing is left to do.")
            return load_run(out)[0]
        learned, n, found = len(plan.train.classes), len(pictures.class_names), len(plan.train.rows)
        say(f"{self.clip.name} on {self.clip.device}: {learned} of {n} classes, {found} pictures")
        if self.shots is not None and found < learned * shots:
            say(f"Some classes have fewer than {shots} pictures to learn from: {learned * shots - found} are missing.")
        tell_contradictions(pictures)
        if plan.left_out:
            say(
                f"Left out of the tests: {sum(plan.left_out.values())} pictures that are among those to learn from too."
            )

        checkpoint = out / CHECKPOINT
        if self.force:
            checkpoint.unlink(missing_ok=True)
        interrupts.hint = lambda: printable(
            f"; --resume goes on from {checkpoint}" if checkpoint.exists() else self.hint
        )
        with progress() as track, nullcontext() if log is None else tensorboard(log) as write:
            record, learner = train_method(
                self.method,
                self.clip,
                pictures,
                plan,
                track,
                self.cache,
                self.options,
                checkpoint,
                write,
                self.teacher,
            )
        self._tell_about_graph(record)
        write_run(out, record, learner)
        return record

    def _tell_about_graph(self, record: dict[str, Any]) -> None:
        """Say why steps were not replayed, where that was asked for or to be expected."""
        reason = record.get("graph", {}).get("not_replayed")
        expected = self.clip.device.type == "cuda" if self.options.graph is None else self.options.graph
        if reason is not None and expected:
            say(f"Steps were not replayed as a CUDA graph: {reason}.")
