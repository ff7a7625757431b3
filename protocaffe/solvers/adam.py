"""Adam: running means of the gradient and of its square."""

from __future__ import annotations

import math

import numpy as np

from protocaffe.blob import Array
from protocaffe.solvers.adagrad import divide_by_root
from protocaffe.solvers.elementwise import ElementwiseSolver, blend


class AdamSolver(ElementwiseSolver):
    """Momentum (m) and a rate per weight (from v), both corrected for their start at 0.

    ``m = b1 * m + (1 - b1) * g;  v = b2 * v + (1 - b2) * g^2``
    ``w = w - rate * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + delta)``

    b1 is ``momentum`` (0 unless it is given), b2 ``momentum2``, t counts iterations from 1.

    Reference: Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015; Caffe's
    AdamSolver.
    """

    history_sets = 2

    def rule(self, rate: float, g: Array, u: Array, *history: Array) -> None:
        """The formula of the class."""
        m, v = history
        b1, b2, t = self.param.momentum, self.param.momentum2, self.iter + 1
        blend(v, np.multiply(g, g, out=u), b2)
        blend(m, g, b1)
        correction = math.sqrt(1 - b2**t) / (1 - b1**t)
        divide_by_root(rate * correction, m, v, self.param.delta, u)
