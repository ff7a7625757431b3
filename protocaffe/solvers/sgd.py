"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from typing import Any

import numpy as np

from protocaffe.assembly import LearnableParam
from protocaffe.blob import Array
from protocaffe.engines.base import MomentumUpdate
from protocaffe.solvers.elementwise import ElementwiseSolver


class SGDSolver(ElementwiseSolver):
    """``h = rate * g + momentum * h;  w = w - h``.

    g is the gradient after clipping and division by ``iter_size``, plus the decay term:
    ``weight_decay * decay_mult * w`` (L2) or ``* sign(w)`` (L1). The rate is inside h, so a
    change of rate does not rescale the momentum.

    Reference: Caffe's SGDSolver.
    """

    engine_rule = "SGD"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._updates: list[MomentumUpdate] = [
            self.engine.momentum_update(
                learnable.blob.data_storage,
                learnable.blob.diff_storage,
                history.data_storage,
                self.param.momentum,
            )
            for learnable, history in zip(self.net.learnable, self.history, strict=True)
        ]

    def rule(self, rate: float, g: Array, u: Array, *history: Array) -> None:
        """The formula of the class."""
        (h,) = history
        h *= self.param.momentum
        h += np.multiply(g, rate, out=g)
        u[...] = h

    def update_parameter(
        self, index: int, learnable: LearnableParam, rate: float, factor: float
    ) -> None:
        """Update one parameter by the engine's own kernel where it has one."""
        decay = self.param.weight_decay * learnable.decay_mult
        if self.param.snapshot_diff or (decay and self.decays_by_sign):
            super().update_parameter(index, learnable, rate, factor)
        elif rate:
            self._updates[index](rate * factor, rate * decay)
