"""timm: this library's optimizers by name in its optimizer factory."""

from timm.optim._optim_factory import OptimInfo, default_registry  # the only way to the registry in timm 1.0

from prograd_fast.optim import ProGradAdamW, ProGradSGD

OPTIMIZERS = (
    OptimInfo(
        name="progradadamw",
        opt_class=ProGradAdamW,
        description="AdamW on the gradient of a task loss, projected by that of a general loss",
        has_betas=True,
    ),
    OptimInfo(
        name="progradsgd",
        opt_class=ProGradSGD,
        description="SGD with Nesterov momentum on the gradient of a task loss, projected by that of a general loss",
        has_eps=False,
        has_momentum=True,
        defaults={"nesterov": True},  # as timm's "sgd"
    ),
)


def register() -> None:
    """Make "progradadamw" and "progradsgd" known to `timm.optim.create_optimizer_v2`.

    They take timm's parameter groups (weight decay, layer decay) and, as keyword arguments of the factory, whatever the
    optimizers take: `create_optimizer_v2(model, "progradadamw", lr=1e-3, layer_decay=0.7, lambda_=0.8)`. "progradsgd"
    has Nesterov momentum of 0.9, as timm's "sgd" has; `nesterov=False` turns it off. Calling it again does nothing.
    """
    for info in OPTIMIZERS:
        if info.name not in default_registry.list_optimizers():
            default_registry.register(info)
