"""AdaGrad: a rate per weight, from the sum of its squared gradients."""

from __future__ import annotations

import numpy as np

from protocaffe.blob import Array
from protocaffe.errors import SolverError
from protocaffe.solvers.elementwise import ElementwiseSolver


class AdaGradSolver(ElementwiseSolver):
    """``h = h + g^2;  w = w - rate * g / (sqrt(h) + delta)``.

    Reference: Duchi et al., "Adaptive subgradient methods for online learning and stochastic
    optimization", JMLR 2011; Caffe's AdaGradSolver.

    Raises:
        SolverError: ``momentum`` is given.
    """

    def check_settings(self) -> None:
        """Refuse a momentum, which this rule does not have."""
        super().check_settings()
        refuse_momentum(self.param.momentum, "AdaGrad")

    def rule(self, rate: float, g: Array, u: Array, *history: Array) -> None:
        """The formula of the class."""
        (h,) = history
        h += np.multiply(g, g, out=u)
        divide_by_root(rate, g, h, self.param.delta, u)


def divide_by_root(rate: float, g: Array, h: Array, delta: float, u: Array) -> None:
    """``u = rate * g / (sqrt(h) + delta)``."""
    np.sqrt(h, out=u)
    u += delta
    np.divide(g, u, out=u)
    u *= rate


def refuse_momentum(momentum: float, solver_type: str) -> None:
    """Raise a :class:`SolverError` if the momentum is not 0."""
    if momentum:
        raise SolverError(
            f"solver type {solver_type} has no momentum, but momentum is {momentum:g}; remove it"
        )
