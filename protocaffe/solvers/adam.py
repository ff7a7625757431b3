"""Adam: running means of the gradient and of its square."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from protocaffe.assembly import LearnableParam
from protocaffe.blob import Array
from protocaffe.engines.base import AdamSettings
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

    engine_rule = "Adam"
    history_sets = 2

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        settings = AdamSettings(self.param.momentum, self.param.momentum2, self.param.delta)
        means = [blob.data_storage for blob in self.history]
        count = len(self.net.learnable)
        self._kernels = [
            self.engine.adam_update(
                *(learnable.blob.data_storage, learnable.blob.diff_storage),
                *((first, second), settings),
            )
            for learnable, first, second in zip(
                self.net.learnable, means[:count], means[count:], strict=True
            )
        ]

    def rule(self, rate: float, g: Array, u: Array, *history: Array) -> None:
        """The formula of the class."""
        m, v = history
        blend(v, np.multiply(g, g, out=u), self.param.momentum2)
        blend(m, g, self.param.momentum)
        divide_by_root(self.corrected_rate(rate), m, v, self.param.delta, u)

    def update_parameter(
        self, index: int, learnable: LearnableParam, rate: float, factor: float
    ) -> None:
        """Update one parameter by the engine's own kernel where it has one."""
        kernel = self._kernels[index]
        decay = self.param.weight_decay * learnable.decay_mult
        if kernel is None or self.param.snapshot_diff or (decay and self.decays_by_sign):
            super().update_parameter(index, learnable, rate, factor)
        else:
            kernel(factor, decay, self.corrected_rate(rate))

    def corrected_rate(self, rate: float) -> float:
        """Also make up for means that started at 0."""
        return rate * self._correction()

    def _correction(self) -> float:
        """What makes up for means that started at 0."""
        b1, b2, t = self.param.momentum, self.param.momentum2, self.iter + 1
        return math.sqrt(1 - b2**t) / (1 - b1**t)
