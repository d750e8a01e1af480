"""The common part of the methods: the task they are given, the learner they make of it, and training by gradients."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prograd_fast.clip import Tokenizer, save_learned
from prograd_fast.methods.crops import Crops
from prograd_fast.methods.settings import Settings
from prograd_fast.optim import ProGrad, ProGradAdamW, ProGradSGD
from prograd_fast.optim.two_gradients import TwoGradients

Scores = Callable[[Tensor], Tensor]  # (B, D) unit image features -> (B, C) scores, the highest one wins


def fingerprint(keys: Iterable[str]) -> str:
    """SHA-256 of the keys of pictures in their order, 64 hexadecimal signs; a key is a picture's digest or its path."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


@dataclass(frozen=True)
class Teacher:
    """Another model, larger as a rule, whose zero-shot logits a method with `lambda_` keeps to.

    It sees the task's pictures through its own image tower and the classes through its own text tower, with the
    method's `teacher_templates`. Only its logits meet the student's, so that the widths may differ. Terms of a method
    that compare features, as KgCoOp's, stay with the student's own untouched model.

    Attributes:
        model: A frozen open_clip model, with its own logit scale.
        tokenizer: Its tokenizer.
        image_features: (N, D') unit rows, float32, on the task's device: the task's pictures, in the task's order.
        pictures: The `fingerprint` of the pictures that these features were made from.
    """

    model: nn.Module
    tokenizer: Tokenizer
    image_features: Tensor
    pictures: str


@dataclass(frozen=True)
class Task:
    """A few labelled pictures, and the model to adapt to them.

    Attributes:
        model: A frozen open_clip model.
        tokenizer: Its tokenizer.
        class_names: The C classes to learn.
        image_features: (N, D) unit rows, float32: the image tower's view of the labelled pictures.
        labels: (N,) int64, indices into `class_names`.
        seed: The seed of everything that is random in a method.
        max_memory: Bytes that the text tower's activations may take, None for no limit (`PromptedCLIP`).
        validation: (V, D) features and (V,) labels of other pictures, by which a method may choose its settings; None:
            there are none. Test pictures are never among them.
        teacher: Another model in the place of `model` as the zero-shot teacher; None (default): `model`.
        pictures: The `fingerprint` of the N pictures, which has to be the teacher's; needed beside `teacher` alone.
        crops: How many rows each picture has, where a method takes each of its crops as a row (`Crops`).

    Raises:
        ValueError: the teacher's features are of other pictures, of pictures in another order, or on another device.
    """

    model: nn.Module
    tokenizer: Tokenizer
    class_names: Sequence[str]
    image_features: Tensor
    labels: Tensor
    seed: int = 0
    max_memory: float | None = None
    validation: tuple[Tensor, Tensor] | None = None
    teacher: Teacher | None = None
    pictures: str = ""
    crops: int = 1

    def __post_init__(self) -> None:
        if self.teacher is None:
            return
        found, expected = self.teacher.image_features, self.image_features
        if found.ndim != 2 or len(found) != len(expected) or found.device != expected.device:
            raise ValueError(
                f"teacher: expected image features of shape ({len(expected)}, D') on {expected.device}, got "
                f"{tuple(found.shape)} on {found.device}; encode the task's pictures with the teacher's image tower."
            )
        if not self.pictures or self.pictures != self.teacher.pictures:
            raise ValueError(
                "teacher: expected features of the task's pictures in the task's order (fingerprint "
                f"{self.pictures[:8] or 'not given'}), got those of others ({self.teacher.pictures[:8] or 'not given'})"
                "; encode the same pictures in the same order, and give both the fingerprint of their keys."
            )

    @classmethod
    def without_pictures(cls, model: Any, tokenizer: Tokenizer, class_names: Sequence[str]) -> "Task":
        """A task to start on without learning: `Method.restore` then takes up what was learned before."""
        where = next(model.parameters()).device
        image_features = torch.empty(0, feature_width(model, tokenizer), device=where)
        return cls(model, tokenizer, class_names, image_features, torch.empty(0, dtype=torch.int64, device=where))

    @property
    def device(self) -> torch.device:
        """The device of all tensors."""
        return self.image_features.device


@torch.no_grad()
def feature_width(model: Any, tokenizer: Tokenizer) -> int:
    """D, the width of a model's image features: that of texts, but before the visual projection."""
    if hasattr(model, "image_width"):
        return int(model.image_width)
    where = next(model.parameters()).device
    return int(model.encode_text(tokenizer(["X"]).to(where)).shape[-1])


class Learner(ABC):
    """A method at work on one task.

    Attributes:
        module: Everything that is learned, in its parameters and persistent buffers; run files and checkpoints hold its
            `state_dict()`.
    """

    module: nn.Module

    @abstractmethod
    def scores(self, class_names: Sequence[str]) -> Scores:
        """The classifier for these classes, learned or not; ValueError if the method cannot name them."""

    def save(self, path: Path, **metadata: Any) -> None:
        """Write what was learned, for `prograd_fast.clip.load_learned` and `Method.restore`; see `save_learned`."""
        save_learned(path, self.module.state_dict(), {}, **metadata)


class Losses(NamedTuple):
    """The results of a training step, 0-d tensors.

    Attributes:
        task: The loss to minimise, with a graph.
        general: The loss whose gradient must not be worked against, with a graph. None: the task loss alone.
        terms: The summands of `task` as they enter it, for the record; without graph.
        correct: How many pictures of the batch have their label as the largest logit, int64. None: not counted.
    """

    task: Tensor
    general: Tensor | None = None
    terms: Mapping[str, Tensor] = {}
    correct: Tensor | None = None


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """How many rows of (B, C) logits are largest at their label, 0-d int64."""
    return (logits.max(1).indices == labels).sum()  # the first largest, as argmax, in half the time on a CPU


class GradientLearner(Learner):
    """A learner that a loop trains: `losses`, `optimizer.backward_and_update`, `epoch_ended`.

    Attributes:
        settings: The method; its learning rate, epochs, batch size and so on are what the loop goes by.
        task: The training pictures.
        optimizer: Over the parameters of `module`. A stage may bring another one.
        generator: The source of random terms.
        memory: Other tensors that are kept from step to step; by name, in checkpoints.
        shares_classes: Whether the ranks of `torch.distributed` share the text tower's work on the classes. Then each
            of them takes the whole of every batch, else its share.
    """

    shares_classes = False
    settings: "GradientMethod"
    task: Task
    optimizer: TwoGradients
    generator: torch.Generator
    memory: dict[str, Tensor]

    @abstractmethod
    def losses(self, image_features: Tensor, labels: Tensor) -> Losses:
        """The losses of one batch: (B, D) unit rows and (B,) int64.

        With `Task.teacher` the rows are those of `rows`; `seen` gives both models' part of them.

        Reads nothing back from the device. On a GPU a step may be recorded and replayed: then Python does not run, and
        what changes between two steps, but for the batch and the learning rate, has to be a tensor that is written in
        place; or it comes with a new `optimizer`, which is recorded anew.
        """

    def rows(self, image_features: Tensor) -> Tensor:
        """The rows of which batches for `losses` are made: features, and behind them the columns of `Task.teacher`.

        Args:
            image_features: (N, D), those of the task's pictures.

        Returns:
            (N, D), or (N, D + D') with a teacher of its own features.

        Raises:
            ValueError: there is such a teacher, and the method looks at none.
        """
        if self.task.teacher is None:
            return image_features
        check_takes_teacher(self.settings)
        return torch.cat([image_features, self.task.teacher.image_features.to(image_features.dtype)], 1)

    def seen(self, rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The features (B, D) that the student sees and those that the teacher sees of (B, ...) rows of `rows`.

        Without `Task.teacher` they are the same tensor.
        """
        if self.task.teacher is None:
            x = rows.to(dtype)
            return x, x
        widths = [self.task.image_features.shape[1], self.task.teacher.image_features.shape[1]]
        if rows.shape[1] != sum(widths):
            raise ValueError(
                f"image_features: expected {widths[0]} columns and the teacher's {widths[1]} behind them, got "
                f"{rows.shape[1]}; make the batches of `learner.rows(task.image_features)`."
            )
        x, other = (part.to(dtype).contiguous() for part in rows.split(widths, 1))
        return x, other

    def new_sgd(self, parameters: Iterable[nn.Parameter], **options: Any) -> ProGradSGD:
        """SGD by the method's settings, on the mean of the gradients over the ranks, if there are several.

        On a GPU it is PyTorch's fused form, whose learning rate can be a tensor.
        """
        settings, tuned = self.settings, list(parameters)
        return ProGradSGD(
            tuned,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            fused=True if tuned[0].is_cuda else None,
            process_group=_all_ranks(),
            **options,
        )

    def new_adam(
        self, parameters: Iterable[nn.Parameter], *, decoupled: bool, eps: float, lambda_: float
    ) -> ProGradAdamW | ProGrad:
        """AdamW (`decoupled`), or Adam with weight decay in the gradient, by the method's settings; see `new_sgd`."""
        settings, tuned = self.settings, list(parameters)
        options: dict[str, Any] = {
            "lr": settings.lr,
            "eps": eps,
            "weight_decay": settings.weight_decay,
            "fused": True,  # its learning rate can be a tensor
        }
        if decoupled:
            return ProGradAdamW(tuned, **options, lambda_=lambda_, process_group=_all_ranks())
        return ProGrad(torch.optim.Adam(tuned, **options), lambda_, process_group=_all_ranks())

    def rates(self, time: int) -> list[float]:
        """Learning rates of the optimizer's groups, as multiples of those that it starts with.

        Args:
            time: Epochs of the stage, or its steps (`GradientMethod.schedule_by`), that are over.
        """
        settings, total = self.settings, self.settings.epochs
        if settings.schedule_by == "step":
            total *= settings.steps_per_epoch(len(self.task.labels))
        return [settings.rate(time, total)] * len(self.optimizer.param_groups)

    @torch.no_grad()
    def epoch_ended(self, epoch: int) -> None:
        """Called after the last update of each epoch, which are counted from 1 through all stages."""

    @torch.no_grad()
    def training_ended(self) -> None:
        """Called once all steps are taken, with the state that is kept: the last one, or the best on validation."""

    def state_dict(self) -> dict[str, Tensor]:
        """The state beside those of `module` and `optimizer` from which training goes on."""
        return {**self.memory, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state_dict` gave; to be done before the state of `optimizer`, which may be another after it."""
        self.memory = {name: value.to(self.task.device) for name, value in state.items() if name != "generator"}
        self.generator.set_state(state["generator"].cpu())


def takes_teacher(method: "Method") -> bool:
    """Whether a method has a loss to a zero-shot teacher, so that another teacher (`Task.teacher`) changes it."""
    return getattr(method, "lambda_", None) is not None


def check_takes_teacher(*methods: "Method") -> None:
    """ValueError where no method has a loss to a zero-shot teacher, so that another teacher changed nothing."""
    if not any(map(takes_teacher, methods)):
        names = ", ".join(method.name for method in methods)
        raise ValueError(
            f"teacher: {names} {'have' if methods[1:] else 'has'} no loss to a zero-shot teacher here; expected a "
            "method with lambda_, such as prograd, and lambda_ to be a number"
        )


def _all_ranks() -> "dist.ProcessGroup | None":
    """The group of all ranks, if there are several."""
    together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return dist.group.WORLD if together else None


@dataclass(frozen=True)
class Method(Settings, ABC):
    """A published way to adapt a model: its settings, and how it starts on a task.

    `name` is what it is called on the command line and in run records, `title` in tables and plots. A method with
    `names_new_classes = False` knows the classes that it was trained on, and no others. `presets` are published
    settings by name. `year` is when the method was published, None for one that was not; `trains` and `keeps` say in a
    few words what is learned, and what holds it to the untouched model. `chooses` names what is chosen on validation
    pictures, empty for nothing; without such pictures it is a setting, or fixed. One with `before_projection = True`
    takes image features from before the tower's last projection, `LoadedClip.before_projection`. `crops` says how the
    features of several random crops of a picture become what a method starts from; None: it starts from the pictures as
    they are. Without `TrainOptions.views` there are no crops.

    `prograd-fast reproduce` reads three more. `set_settings`: settings of the authors' for a set of the benchmark, by
    its name in CoOp's code, on top of a preset. `table_shots`: pictures per class in a table of results, where they are
    not the field's. `differs`: what the authors do otherwise, in a sentence; empty for nothing.

    Raises:
        ValueError: a setting is of another type than its field, not finite, or beyond all reason.
    """

    title: ClassVar[str]
    year: ClassVar[int | None] = None
    trains: ClassVar[str] = "nothing"
    keeps: ClassVar[str] = "everything"
    chooses: ClassVar[str] = ""
    before_projection: ClassVar[bool] = False
    names_new_classes: ClassVar[bool] = True
    set_settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    table_shots: ClassVar[Mapping[str, int]] = {}
    differs: ClassVar[str] = ""
    crops: ClassVar[Crops | None] = None

    @property
    def teacher_templates(self) -> tuple[str, ...] | None:
        """The prompts of the untouched model that the method is compared with; None: zero-shot's default."""
        return None

    @abstractmethod
    def start(self, task: Task) -> Learner:
        """Set the method up on a task."""

    def restore(
        self, model: nn.Module, tokenizer: Tokenizer, class_names: Sequence[str], learned: Any, seed: int = 0
    ) -> Learner:
        """A learner that knows what another one had learned, `learned = module.state_dict()`, with its task's seed.

        Raises:
            ValueError: it is not of this method, these settings, this model or as many classes.
        """
        learner = self.start(replace(Task.without_pictures(model, tokenizer, class_names), seed=seed))
        try:
            learner.module.load_state_dict(learned)
        except RuntimeError as error:
            message = " ".join(str(error).split())
            raise ValueError(f"what was learned does not fit {self.name} on this model: {message}") from error
        return learner


@dataclass(frozen=True)
class GradientMethod(Method):
    """A method that is trained by gradients: learning rate, schedule and batches.

    Attributes:
        lr: Learning rate after the warm-up; it falls along a half cosine, epoch by epoch, and would reach 0 after the
            last one.
        momentum: Momentum of SGD; Adam has none.
        weight_decay: Weight decay of the optimizer.
        epochs: Passes over the labelled pictures; with the default `batch_size` as many steps.
        batch_size: Pictures in a step; None: all of them (cached features make that cheap).
        warmup_epochs: First epochs at the constant rate `warmup_lr`; they count among `epochs`.
        warmup_lr: See there.
        clip_grad_norm: Largest norm of the gradient of all parameters together, None: no limit.

    Raises:
        ValueError: a setting is out of range.
    """

    lr: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 0.0
    epochs: int = 100
    batch_size: int | None = None
    warmup_epochs: int = 0
    warmup_lr: float = 1e-5
    clip_grad_norm: float | None = None

    schedule_by: ClassVar[Literal["epoch", "step"]] = "epoch"  # when the learning rate changes

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lr", "warmup_lr", "clip_grad_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be above 0 and finite, got {value}")
        for name in ("momentum", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be 0 or more and finite, got {getattr(self, name)}")
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(f"warmup_epochs must be between 0 and epochs, {self.epochs}, got {self.warmup_epochs}")

    def stages(self) -> tuple[int, ...]:
        """Epochs of each stage. At the start of each, the loop takes the learner's optimizer and the schedule anew."""
        return (self.epochs,)

    def steps_per_epoch(self, n_pictures: int) -> int:
        """How many batches so many pictures make."""
        return math.ceil(n_pictures / (self.batch_size or n_pictures))

    def rate(self, time: int, total: int) -> float:
        """The learning rate as a multiple of `lr` when `time` of `total` epochs, or steps, of a stage are over.

        Constant warm-up, then half a cosine.
        """
        if time < self.warmup_epochs:
            return self.warmup_lr / self.lr
        return (1 + math.cos(math.pi * (time - self.warmup_epochs) / total)) / 2

    @abstractmethod
    def start(self, task: Task) -> GradientLearner:
        """Set the method up on a task."""
