"""Nesterov's accelerated gradient."""

from __future__ import annotations

import numpy as np

from protocaffe.blob import Array
from protocaffe.solvers.elementwise import ElementwiseSolver


class NesterovSolver(ElementwiseSolver):
    """``h' = rate * g + momentum * h;  u = (1 + momentum) * h' - momentum * h;  w = w - u``.

    Reference: Sutskever et al., "On the importance of initialization and momentum in deep
    learning", ICML 2013; Caffe's NesterovSolver.
    """

    engine_rule = "Nesterov"

    def rule(self, rate: float, g: Array, u: Array, *history: Array) -> None:
        """The formula of the class."""
        (h,) = history
        h *= self.param.momentum
        np.negative(h, out=u)
        h += np.multiply(g, rate, out=g)
        u += np.multiply(h, 1 + self.param.momentum, out=g)
