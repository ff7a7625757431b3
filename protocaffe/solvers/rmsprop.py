"""RMSProp: a rate per weight, from a running mean of its squared gradients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from protocaffe.blob import Array
from protocaffe.proto.caffe_pb2 import SolverParameter
from protocaffe.solvers.adagrad import divide_by_root, momentum_problems
from protocaffe.solvers.elementwise import ElementwiseSolver, blend


class RMSPropSolver(ElementwiseSolver):
    """``h = d * h + (1 - d) * g^2;  w = w - rate * g / (sqrt(h) + delta)``, d = ``rms_decay``.

    Reference: Tieleman and Hinton, "RMSProp: divide the gradient by a running average of its
    recent magnitude", Coursera lecture 6.5, 2012; Caffe's RMSPropSolver.

    Raises:
        SolverError: ``momentum`` is given, or ``rms_decay`` is not in [0, 1).
    """

    engine_rule = "RMSProp"

    @classmethod
    def setting_problems(cls, param: SolverParameter) -> Iterator[tuple[str, str]]:
        """Also find a momentum, which this rule does not have, and a decay that diverges."""
        yield from super().setting_problems(param)
        yield from momentum_problems(param, "RMSProp")
        if not 0 <= param.rms_decay < 1:
            yield "rms_decay", f"rms_decay must be at least 0 and below 1, got {param.rms_decay:g}"

    def rule(self, rate: float, g: Array, u: Array, *history: Array) -> None:
        """The formula of the class."""
        (h,) = history
        blend(h, np.multiply(g, g, out=u), self.param.rms_decay)
        divide_by_root(rate, g, h, self.param.delta, u)
