"""AdaGrad: a rate per weight, from the sum of its squared gradients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from protocaffe.blob import Array
from protocaffe.proto.caffe_pb2 import SolverParameter
from protocaffe.solvers.elementwise import ElementwiseSolver


class AdaGradSolver(ElementwiseSolver):
    """``h = h + g^2;  w = w - rate * g / (sqrt(h) + delta)``.

    Reference: Duchi et al., "Adaptive subgradient methods for online learning and stochastic
    optimization", JMLR 2011; Caffe's AdaGradSolver.

    Raises:
        SolverError: ``momentum`` is given.
    """

    engine_rule = "AdaGrad"

    @classmethod
    def setting_problems(cls, param: SolverParameter) -> Iterator[tuple[str, str]]:
        """Also find a momentum, which this rule does not have."""
        yield from super().setting_problems(param)
        yield from momentum_problems(param, "AdaGrad")

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


def momentum_problems(param: SolverParameter, solver_type: str) -> Iterator[tuple[str, str]]:
    """Yield the field and a message if there is a momentum."""
    if param.momentum:
        yield (
            "momentum",
            f"solver type {solver_type} has no momentum, but momentum is {param.momentum:g}; "
            f"remove it",
        )
