"""The projection rules: see `prograd_fast.optim.rules`."""

from prograd_fast.optim.rules import AGEM, Bloop, CAGrad, GradVac, PCGrad, ProGrad, Rule, State, Subspace

__all__ = ["AGEM", "Bloop", "CAGrad", "GradVac", "PCGrad", "ProGrad", "Rule", "State", "Subspace"]
