"""Update rules that treat every number of a parameter alike."""

from __future__ import annotations

from typing import Any

import numpy as np

from protocaffe.assembly import LearnableParam
from protocaffe.blob import Array
from protocaffe.solvers.solver import Solver

CHUNK = 1 << 14
"""Numbers per step: a rule's arrays of that size stay in the second-level cache together."""


class ElementwiseSolver(Solver):
    """Applies :meth:`rule` to every parameter, chunk by chunk.

    What a rule needs is read from memory once and written once; all its intermediate results
    stay in the cache, in arrays that are used again and again.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._gradient, self._update = np.empty((2, CHUNK), self.net.dtype)

    def rule(self, rate: float, g: Array, u: Array, *history: Array) -> None:
        """Compute the update of some numbers of a parameter.

        Args:
            rate: the parameter's own learning rate.
            g: the gradient after clipping, division by ``iter_size`` and decay; may be
                overwritten.
            u: receives what is to be subtracted from the parameter.
            history: what the rule remembers, brought up to date in place.
        """
        raise NotImplementedError

    def update_parameter(
        self, index: int, learnable: LearnableParam, rate: float, factor: float
    ) -> None:
        """Update one parameter (see :meth:`Solver.update_parameter`)."""
        blob = learnable.blob
        sets = self.history[index :: len(self.net.learnable)]
        decay = self.param.weight_decay * learnable.decay_mult
        views = self.engine.flat_views(
            blob.data_storage, blob.diff_storage, *[each.data_storage for each in sets]
        )
        with np.errstate(all="ignore"):  # a run that diverges shows it in its loss
            for start in range(0, views[0].size, CHUNK):
                self._update_chunk(
                    [view[start : start + CHUNK] for view in views], rate, factor, decay
                )

    def _update_chunk(self, parts: list[Array], rate: float, factor: float, decay: float) -> None:
        w, diff, *history = parts
        g, u = self._gradient[: w.size], self._update[: w.size]
        np.multiply(diff, factor, out=g)
        if decay:
            np.multiply(np.sign(w, out=u) if self.decays_by_sign else w, decay, out=u)
            g += u
        self.rule(rate, g, u, *history)
        w -= u
        if self.param.snapshot_diff:
            diff[...] = u  # what Caffe's snapshots have as the diff


def blend(average: Array, value: Array, keep: float) -> None:
    """``average = keep * average + (1 - keep) * value``; overwrites the value too."""
    average *= keep
    value *= 1 - keep
    average += value
