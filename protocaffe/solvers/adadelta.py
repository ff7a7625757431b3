"""AdaDelta: steps as large as the steps before, in proportion to the gradient."""

from __future__ import annotations

import numpy as np

from protocaffe.blob import Array
from protocaffe.solvers.elementwise import ElementwiseSolver, blend


class AdaDeltaSolver(ElementwiseSolver):
    """Two running means per weight, of squared gradients (h) and of squared steps (d).

    ``h = m * h + (1 - m) * g^2;  s = g * sqrt((d + delta) / (h + delta))``
    ``d = m * d + (1 - m) * s^2;  w = w - rate * s``, where m is ``momentum``.

    Reference: Zeiler, "ADADELTA: an adaptive learning rate method", arXiv 1212.5701, 2012;
    Caffe's AdaDeltaSolver.
    """

    engine_rule = "AdaDelta"
    history_sets = 2

    def rule(self, rate: float, g: Array, u: Array, *history: Array) -> None:
        """The formula of the class."""
        h, d = history
        delta = self.param.delta
        blend(h, np.multiply(g, g, out=u), self.param.momentum)
        np.add(d, delta, out=u)
        g *= np.sqrt(u, out=u)
        np.add(h, delta, out=u)
        g /= np.sqrt(u, out=u)
        blend(d, np.multiply(g, g, out=u), self.param.momentum)
        np.multiply(g, rate, out=u)
