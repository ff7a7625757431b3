"""Caffe reborn for Python: train deep networks from two text files.

``import protocaffe as caffe`` offers what pycaffe did, by the same names. After it, other files of
the program may say ``import caffe``, too; see :mod:`protocaffe.alias`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from protocaffe import alias

if TYPE_CHECKING:
    from protocaffe import io as io
    from protocaffe import layers as layers
    from protocaffe.blob import Blob as Blob
    from protocaffe.errors import ProtocaffeError as ProtocaffeError
    from protocaffe.gradients import check_gradients as check_gradients
    from protocaffe.layers import Layer as Layer
    from protocaffe.layers import layer_types as layer_type_list
    from protocaffe.net import Net as Net
    from protocaffe.net_spec import NetSpec as NetSpec
    from protocaffe.net_spec import params as params
    from protocaffe.net_spec import to_proto as to_proto
    from protocaffe.proto.caffe_pb2 import TEST as TEST
    from protocaffe.proto.caffe_pb2 import TRAIN as TRAIN
    from protocaffe.settings import NCCL as NCCL
    from protocaffe.settings import has_nccl as has_nccl
    from protocaffe.settings import init_log as init_log
    from protocaffe.settings import set_device as set_device
    from protocaffe.settings import set_logging_disabled as set_logging_disabled
    from protocaffe.settings import set_mode_cpu as set_mode_cpu
    from protocaffe.settings import set_mode_gpu as set_mode_gpu
    from protocaffe.settings import set_multiprocess as set_multiprocess
    from protocaffe.settings import set_random_seed as set_random_seed
    from protocaffe.settings import set_solver_count as set_solver_count
    from protocaffe.settings import set_solver_rank as set_solver_rank
    from protocaffe.settings import solver_count as solver_count
    from protocaffe.settings import solver_rank as solver_rank
    from protocaffe.solvers import AdaDeltaSolver as AdaDeltaSolver
    from protocaffe.solvers import AdaGradSolver as AdaGradSolver
    from protocaffe.solvers import AdamSolver as AdamSolver
    from protocaffe.solvers import NesterovSolver as NesterovSolver
    from protocaffe.solvers import RMSPropSolver as RMSPropSolver
    from protocaffe.solvers import SGDSolver as SGDSolver
    from protocaffe.solvers import get_solver as get_solver
    from protocaffe.timer import Timer as Timer

_NAMES = {
    "blob": ("Blob",),
    "classifier": ("Classifier",),
    "detector": ("Detector",),
    "errors": ("ProtocaffeError",),
    "gradients": ("check_gradients",),
    "layers": ("Layer",),
    "net": ("Net",),
    "net_spec": ("NetSpec", "params", "to_proto"),
    "proto.caffe_pb2": ("TEST", "TRAIN"),
    "settings": (
        *("NCCL", "has_nccl", "init_log", "set_device", "set_logging_disabled", "set_mode_cpu"),
        *("set_mode_gpu", "set_multiprocess", "set_random_seed", "set_solver_count"),
        *("set_solver_rank", "solver_count", "solver_rank"),
    ),
    "solvers": (
        *("AdaDeltaSolver", "AdaGradSolver", "AdamSolver", "NesterovSolver", "RMSPropSolver"),
        *("SGDSolver", "get_solver"),
    ),
    "timer": ("Timer",),
}
"""What this package offers, by the module where it is."""

_PLACES = {name: module for module, names in _NAMES.items() for name in names}
_MODULES = (
    "classifier",
    "coord_map",
    "detector",
    "dnn",
    "draw",
    "io",
    "layers",
    "log",
    "net_spec",
    "proto",
)

__all__ = [*_PLACES, *_MODULES, "__version__", "layer_type_list"]


alias.install()


def __getattr__(name: str) -> object:
    """Import what this package offers when somebody asks for it, not before."""
    if name in _PLACES:
        return getattr(import_module(f"protocaffe.{_PLACES[name]}"), name)
    if name in _MODULES:
        if name == "proto":
            import_module("protocaffe.proto.caffe_pb2")  # scripts say caffe.proto.caffe_pb2
        return import_module(f"protocaffe.{name}")
    if name == "layer_type_list":
        from protocaffe.layers import layer_types

        return layer_types
    if name == "__version__":
        from importlib.metadata import version

        return version("protocaffe")
    from protocaffe.errors import did_you_mean

    raise AttributeError(
        f"module 'protocaffe' has no attribute '{name}'{did_you_mean(name, __all__)}"
    )


def __dir__() -> list[str]:
    return [*globals(), *__all__]
