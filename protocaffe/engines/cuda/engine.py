"""The CUDA engine: nets on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import numpy as np

from protocaffe.assembly import LearnableParam
from protocaffe.blob import Blob, Storage
from protocaffe.engines.base import Engine, LayerNode, Plan, WholeUpdate
from protocaffe.engines.cuda import (  # noqa: F401  (importing registers the overrides)
    arrays,
    batch_norm,
    convolution,
    data,
    inner_product,
    library,
    loss,
    lrn,
    neurons,
    pooling,
    prelu,
    scale,
)
from protocaffe.engines.cuda.device import Device
from protocaffe.engines.cuda.dnn import Dnn
from protocaffe.engines.cuda.forms import FLOAT32, Precision
from protocaffe.engines.cuda.plan import CudaPlan
from protocaffe.engines.cuda.update import RULES, CudaUpdate
from protocaffe.layers import Layer
from protocaffe.proto.caffe_pb2 import SolverParameter


class CudaEngine(Engine):
    """The GPU engine.

    Args:
        device: the GPU.
        captures: whether passes may become CUDA graphs.
    """

    name: ClassVar[str] = "cuda"

    def __init__(self, device: Device, captures: bool = True) -> None:
        self.device = device
        self.xp: Any = device.xp
        self._captures = captures

    @classmethod
    def open(
        cls,
        number: int = 0,
        captures: bool = True,
        precision: Precision = FLOAT32,
        autotune: bool = True,
    ) -> CudaEngine:
        """Return the engine on one GPU of this machine.

        Args:
            number: which GPU.
            captures: whether passes may become CUDA graphs.
            precision: what convolutions and matrix products compute with, if the GPU can.
            autotune: whether nets that train time cuDNN's plans in their first pass; see
                :class:`Dnn`.

        Raises:
            UnavailableError: a library, the driver or the GPU is missing.
        """
        cupy = library.load_cupy(number)
        precision = library.fitting(precision, cupy, number)
        blas, cudnn = library.load_cublas(cupy), library.load_cudnn()
        with library.explained(cupy, number):
            device = Device(
                cupy,
                number,
                lambda stream, workspace: library.CuBlas(blas, stream, workspace, precision),
                lambda stream: Dnn(cudnn, cupy, stream, precision, autotune),
                precision,
            )
        return cls(device, captures)

    def plan(
        self, nodes: Sequence[LayerNode[Layer]], fuse: bool = True, reuse_memory: bool = False
    ) -> Plan:
        """Bind a net's work; every blob has memory of its own, whatever ``reuse_memory`` says."""
        return CudaPlan(self.device, nodes, fuse, captures=self._captures and fuse)

    def sum_of_squares(self, storages: Sequence[Storage]) -> float:
        """Return the sum of the squares of all numbers, added up on the device."""
        with self.device.active():
            arrays = [self.device.plain(self.device.bring(storage)) for storage in storages]
            return float(sum((array * array).sum() for array in arrays))

    def whole_update(
        self,
        rule: str,
        param: SolverParameter,
        learnable: Sequence[LearnableParam],
        history: Sequence[Blob],
    ) -> WholeUpdate | None:
        """Return one kernel for all parameters, if they are float32."""
        if not learnable or any(each.blob.dtype != np.float32 for each in learnable):
            return None
        return CudaUpdate(self.device, rule, param, learnable, history) if rule in RULES else None

    def active(self) -> AbstractContextManager[None]:
        """Return a context in which arrays are made on the device."""
        return self.device.active()

    def synchronize(self) -> None:
        """Wait until the device is done."""
        self.device.synchronize()
