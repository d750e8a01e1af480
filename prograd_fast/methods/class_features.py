"""Learned contexts: what each of them trains, and the class features and logits that come from it."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prograd_fast.clip import PromptedCLIP
from prograd_fast.functional import sampled_log_probs


class Context(nn.Module):
    """The context tokens, the same for every picture.

    Args:
        ctx: (M, d), the first parameter of every context.
    """

    per_picture: ClassVar[bool] = False  # whether the class features depend on the picture

    def __init__(self, ctx: nn.Parameter) -> None:
        super().__init__()
        self.ctx = ctx

    def noise(self, n_pictures: int, generator: torch.Generator) -> Tensor | None:
        """Draw the random numbers that `class_features` needs in a training step."""
        return None

    def fixed_noise(self, generator: torch.Generator) -> Tensor | None:
        """Draw those that it needs at the test: the same as for one picture, unless there is another way."""
        return self.noise(1, generator)

    def class_features(self, net: PromptedCLIP, image_features: Tensor, noise: Tensor | None) -> Tensor:
        """Unit features of the classes of `net` for B pictures.

        Args:
            net: the network over the classes; its own context is not used.
            image_features: (B, D) unit rows; looked at only if `per_picture`.
            noise: of `noise`.

        Returns:
            (C, D) for all pictures alike, (B, C, D), or (S, 1 or B, C, D) for S samples.
        """
        return net.class_features(self.ctx)


class PerPicture(Context):
    """CoCoOp's: a small network adds to every token what it makes of the picture.

    ctx_m(x) = ctx_m + W2 relu(W1 x + b1) + b2. Source: `KaiyangZhou/CoOp:trainers/cocoop.py`.

    Args:
        ctx: (M, d).
        n_features: D; the hidden layer has D/16 units.
    """

    per_picture: ClassVar[bool] = True

    def __init__(self, ctx: nn.Parameter, n_features: int) -> None:
        super().__init__(ctx)
        hidden = max(1, n_features // 16)
        self.meta_net = nn.Sequential(nn.Linear(n_features, hidden), nn.ReLU(), nn.Linear(hidden, ctx.shape[-1]))
        self.meta_net.to(ctx)

    def class_features(self, net: PromptedCLIP, image_features: Tensor, noise: Tensor | None) -> Tensor:
        """(B, C, D)."""
        return net.class_features(self.ctx + self.meta_net(image_features)[:, None])


class Corrected(Context):
    """LASP's: a learned vector is added to all class features before they are normalised."""

    def __init__(self, ctx: nn.Parameter, n_features: int) -> None:
        super().__init__(ctx)
        self.correction = nn.Parameter(ctx.new_zeros(n_features))

    def class_features(self, net: PromptedCLIP, image_features: Tensor, noise: Tensor | None) -> Tensor:
        """(C, D)."""
        return F.normalize(net.class_features(self.ctx, unit=False) + self.correction, dim=-1)


class Deep(Context):
    """PromptSRC's and MaPLe's: before each of the next blocks of the tower, other tokens take the place of these.

    Args:
        ctx: (M, d).
        depth: number of blocks with tokens of their own, the first included; the others start from N(0, 0.02²).
    """

    def __init__(self, ctx: nn.Parameter, depth: int) -> None:
        super().__init__(ctx)
        self.deep = nn.Parameter(0.02 * torch.randn(depth - 1, *ctx.shape).to(ctx))

    def class_features(self, net: PromptedCLIP, image_features: Tensor, noise: Tensor | None) -> Tensor:
        """(C, D)."""
        return net.class_features(self.ctx, self.deep if len(self.deep) else None)


class Sampled(Context):
    """Variational prompts: a random vector, added to every token, with a learned Gaussian distribution.

        r = μ + ε exp(½ log σ²),   ε ~ N(0, I),   ctx_m + r

    Source: `saic-fi/Bayesian-Prompt-Learning:trainers/vpt.py`, coopvpt, where log σ² is called "std".

    Args:
        ctx: (M, d).
        samples: S.
    """

    def __init__(self, ctx: nn.Parameter, samples: int) -> None:
        super().__init__(ctx)
        self.samples = samples
        self._make_posterior(ctx.shape[-1])

    def _make_posterior(self, width: int) -> None:
        self.mean = nn.Parameter(self.ctx.new_zeros(1, width))
        self.log_variance = nn.Parameter(torch.rand(1, width).to(self.ctx))

    def posterior(self, image_features: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log σ², (1, d), or (B, d) if they depend on the picture."""
        return self.mean, self.log_variance

    def noise(self, n_pictures: int, generator: torch.Generator) -> Tensor:
        """ε, (S, 1, d): the samples are the same for all pictures."""
        n = n_pictures if self.per_picture else 1
        shape = self.samples, n, self.ctx.shape[-1]
        return torch.randn(shape, generator=generator, device=generator.device, dtype=self.ctx.dtype)

    def class_features(self, net: PromptedCLIP, image_features: Tensor, noise: Tensor | None) -> Tensor:
        """(S, 1 or B, C, D)."""
        assert noise is not None
        mean, log_variance = self.posterior(image_features)
        shift = mean + noise * (log_variance / 2).exp()  # (S, 1 or B, d)
        contexts = self.ctx + shift[..., None, :]
        return net.class_features(contexts.flatten(0, 1)).unflatten(0, contexts.shape[:2])

    def divergence(self, image_features: Tensor) -> Tensor:
        """KL(N(μ, σ²) ‖ N(0, I)), a mean over the d components and the pictures."""
        mean, log_variance = self.posterior(image_features)
        return (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2


class SampledPerPicture(Sampled):
    """Variational prompts whose distribution depends on the picture: two networks compute its mean and variance.

    Source: cocoopvpt in the same file. The authors' code is right for one picture at a time: it adds the shifts of B
    pictures to the M tokens of one context. Here B is any number.

    Args:
        ctx: (M, d).
        samples: S.
        n_features: D; two hidden layers have D/2 units each.
    """

    per_picture: ClassVar[bool] = True

    def __init__(self, ctx: nn.Parameter, samples: int, n_features: int) -> None:
        self.n_features = n_features
        super().__init__(ctx, samples)

    def _make_posterior(self, width: int) -> None:
        self.mean_net, self.log_variance_net = (self._network(width) for _ in range(2))

    def _network(self, width: int) -> nn.Sequential:
        hidden = max(1, self.n_features // 2)
        layers = [nn.Linear(self.n_features, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU()]
        return nn.Sequential(*layers, nn.Linear(hidden, width)).to(self.ctx)

    def posterior(self, image_features: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log σ², (B, d)."""
        return self.mean_net(image_features), self.log_variance_net(image_features)


def sample_logits(net: PromptedCLIP, image_features: Tensor, class_features: Tensor) -> Tensor:
    """Logits of B pictures, of each sample on its own.

    Args:
        net: whose logit scale and bias count.
        image_features: (B, D) unit rows.
        class_features: what `Context.class_features` gave for these pictures.

    Returns:
        (B, C), or (S, B, C) for S samples.
    """
    if class_features.ndim == 2:
        return net.logits(image_features, class_features)
    return net.logits(image_features[:, None], class_features)[..., 0, :]  # each picture with its own classes


def mean_logits(logits: Tensor) -> Tensor:
    """(B, C) logits of the prediction: for (S, B, C) the logarithm of the mean of the samples' probabilities."""
    return logits if logits.ndim == 2 else sampled_log_probs(logits)
