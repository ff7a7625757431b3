"""oneDNN's C interface through ctypes: the library, its constants and its call signatures.

Numbers and signatures are those of oneDNN v3.2 (the ``onednn-cpu-gomp`` wheel); format tags
move between versions, so any other version is refused.
"""

from __future__ import annotations

import ctypes
import os
import site
import sys
from ctypes import POINTER, c_char_p, c_float, c_int, c_int64, c_size_t, c_uint, c_void_p
from pathlib import Path
from typing import Any

Handle = c_void_p
_out = POINTER(c_void_p)
_dims = POINTER(c_int64)

MAX_AXES = 12
OK, UNIMPLEMENTED = 0, 3
UNDEF, BF16, F32 = 0, 2, 3
FORWARD_TRAINING, FORWARD_INFERENCE, BACKWARD, BACKWARD_DATA = 64, 96, 128, 160
CONVOLUTION_DIRECT = 1
ELTWISE_RELU, ELTWISE_TANH, ELTWISE_ELU, ELTWISE_LOGISTIC = 0x20, 0x21, 0x22, 0x29
ELTWISE_SQRT, ELTWISE_LINEAR, ELTWISE_SWISH = 0x25, 0x26, 0x2C
ELTWISE_CLIP, ELTWISE_CLIP_V2, ELTWISE_POW = 0x2E, 0x2F, 0x30
# The same, with the gradient worked out from the result:
ELTWISE_RELU_USE_DST, ELTWISE_TANH_USE_DST = 0x100, 0x101
ELTWISE_ELU_USE_DST, ELTWISE_LOGISTIC_USE_DST = 0x102, 0x104
ELTWISE_CLIP_V2_USE_DST = 0x106
POOLING_MAX, POOLING_AVG_INCLUDE_PADDING, POOLING_AVG_EXCLUDE_PADDING = 0x1FF, 0x2FF, 0x3FF
LRN_ACROSS_CHANNELS = 0xAFF
SOFTMAX_ACCURATE = 0x30000
BINARY_ADD, BINARY_MUL, BINARY_SUB = 0x1FFF0, 0x1FFF1, 0x1FFF5
BN_USE_GLOBAL_STATS, BN_USE_SCALE, BN_USE_SHIFT, BN_FUSE_RELU = 1, 2, 4, 8
TAG_ANY, TAG_NHWC, TAG_NCHW16C = 1, 22, 78
ISA_AVX512_BF16 = 0xE7
QUERY_IMPLEMENTATION = 8
QUERY_SRC, QUERY_DIFF_SRC, QUERY_WEIGHTS, QUERY_DIFF_WEIGHTS = 129, 130, 131, 132
QUERY_DST, QUERY_DIFF_DST, QUERY_WORKSPACE = 133, 134, 135

ARG_SRC, ARG_SRC_1, ARG_DST, ARG_WEIGHTS, ARG_BIAS = 1, 2, 17, 33, 41
ARG_MEAN, ARG_VARIANCE, ARG_SCALE, ARG_SHIFT, ARG_WORKSPACE = 49, 50, 51, 52, 64
ARG_DIFF_SRC, ARG_DIFF_DST, ARG_DIFF_WEIGHTS, ARG_DIFF_BIAS = 129, 145, 161, 169
ARG_DIFF_SCALE, ARG_DIFF_SHIFT = 255, 256
ARG_MULTIPLE_SRC, ARG_ATTR_SCALES, ARG_POST_OP = 1024, 4096, 32768


class ExecArg(ctypes.Structure):
    """``dnnl_exec_arg_t``: which role a memory plays in an execution."""

    _fields_ = (("arg", c_int), ("memory", c_void_p))


class _Version(ctypes.Structure):
    _fields_ = (
        ("major", c_int),
        ("minor", c_int),
        ("patch", c_int),
        ("hash", c_char_p),
        ("cpu_runtime", c_uint),
        ("gpu_runtime", c_uint),
    )


_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "engine_create": (_out, c_int, c_size_t),
    "stream_create": (_out, Handle, c_uint),
    "memory_create": (_out, Handle, Handle, c_void_p),
    "memory_set_data_handle": (Handle, c_void_p),
    "memory_destroy": (Handle,),
    "memory_desc_create_with_tag": (_out, c_int, _dims, c_int, c_int),
    "memory_desc_create_with_strides": (_out, c_int, _dims, c_int, _dims),
    "memory_desc_create_submemory": (_out, Handle, _dims, _dims),
    "memory_desc_clone": (_out, Handle),
    "memory_desc_destroy": (Handle,),
    "primitive_attr_create": (_out,),
    "primitive_attr_destroy": (Handle,),
    "primitive_attr_set_post_ops": (Handle, Handle),
    "primitive_attr_set_scales_mask": (Handle, c_int, c_int),
    "post_ops_create": (_out,),
    "post_ops_destroy": (Handle,),
    "post_ops_append_eltwise": (Handle, c_int, c_float, c_float),
    "post_ops_append_sum": (Handle, c_float, c_int, c_int),
    "post_ops_append_binary": (Handle, c_int, Handle),
    "primitive_desc_destroy": (Handle,),
    "primitive_desc_query": (Handle, c_int, c_int, c_void_p),
    "primitive_create": (_out, Handle),
    "primitive_destroy": (Handle,),
    "primitive_execute": (Handle, Handle, c_int, POINTER(ExecArg)),
    "convolution_forward_primitive_desc_create": (
        *(_out, Handle, c_int, c_int, Handle, Handle, Handle, Handle),
        *(_dims, _dims, _dims, _dims, Handle),
    ),
    "convolution_backward_data_primitive_desc_create": (
        *(_out, Handle, c_int, Handle, Handle, Handle),
        *(_dims, _dims, _dims, _dims, Handle, Handle),
    ),
    "convolution_backward_weights_primitive_desc_create": (
        *(_out, Handle, c_int, Handle, Handle, Handle, Handle),
        *(_dims, _dims, _dims, _dims, Handle, Handle),
    ),
    "inner_product_forward_primitive_desc_create": (
        *(_out, Handle, c_int, Handle, Handle, Handle, Handle, Handle),
    ),
    "inner_product_backward_data_primitive_desc_create": (
        *(_out, Handle, Handle, Handle, Handle, Handle, Handle),
    ),
    "inner_product_backward_weights_primitive_desc_create": (
        *(_out, Handle, Handle, Handle, Handle, Handle, Handle, Handle),
    ),
    "pooling_forward_primitive_desc_create": (
        *(_out, Handle, c_int, c_int, Handle, Handle),
        *(_dims, _dims, _dims, _dims, _dims, Handle),
    ),
    "pooling_backward_primitive_desc_create": (
        *(_out, Handle, c_int, Handle, Handle),
        *(_dims, _dims, _dims, _dims, _dims, Handle, Handle),
    ),
    "eltwise_forward_primitive_desc_create": (
        *(_out, Handle, c_int, c_int, Handle, Handle, c_float, c_float, Handle),
    ),
    "eltwise_backward_primitive_desc_create": (
        *(_out, Handle, c_int, Handle, Handle, Handle, c_float, c_float, Handle, Handle),
    ),
    "prelu_forward_primitive_desc_create": (
        *(_out, Handle, c_int, Handle, Handle, Handle, Handle),
    ),
    "prelu_backward_primitive_desc_create": (
        *(_out, Handle, Handle, Handle, Handle, Handle, Handle, Handle, Handle),
    ),
    "softmax_forward_primitive_desc_create": (
        *(_out, Handle, c_int, c_int, Handle, Handle, c_int, Handle),
    ),
    "lrn_forward_primitive_desc_create": (
        *(_out, Handle, c_int, c_int, Handle, Handle),
        *(c_int64, c_float, c_float, c_float, Handle),
    ),
    "lrn_backward_primitive_desc_create": (
        *(_out, Handle, c_int, Handle, Handle, Handle),
        *(c_int64, c_float, c_float, c_float, Handle, Handle),
    ),
    "batch_normalization_forward_primitive_desc_create": (
        *(_out, Handle, c_int, Handle, Handle, c_float, c_uint, Handle),
    ),
    "batch_normalization_backward_primitive_desc_create": (
        *(_out, Handle, c_int, Handle, Handle, Handle, c_float, c_uint, Handle, Handle),
    ),
    "sum_primitive_desc_create": (_out, Handle, Handle, c_int, POINTER(c_float), _out, Handle),
    "concat_primitive_desc_create": (_out, Handle, Handle, c_int, c_int, _out, Handle),
    "binary_primitive_desc_create": (_out, Handle, c_int, Handle, Handle, Handle, Handle),
    "reorder_primitive_desc_create": (_out, Handle, Handle, Handle, Handle, Handle),
}


class UnavailableError(Exception):
    """oneDNN cannot be used on this machine; the message says why."""


def _candidates() -> list[str]:
    folders = [Path(sys.prefix) / "lib", Path(site.getuserbase()) / "lib"]
    return [str(folder / "libdnnl.so.3") for folder in folders] + ["libdnnl.so.3"]


def load() -> ctypes.CDLL:
    """Find oneDNN, check its version and declare its functions.

    Raises:
        UnavailableError: no library of the right version was found.
    """
    # Idle workers that spin for long starve whatever else wants the core (NumPy, data threads).
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    for path in _candidates():
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        _check_version(library, path)
        _declare(library)
        library.path = path  # type: ignore[attr-defined]
        return library
    raise UnavailableError("libdnnl.so.3 was not found (pip install onednn-cpu-gomp)")


def version(library: ctypes.CDLL) -> tuple[int, int, int]:
    """Return the library's own version."""
    library.dnnl_version.restype = POINTER(_Version)
    found = library.dnnl_version().contents
    return found.major, found.minor, found.patch


def _check_version(library: ctypes.CDLL, path: str) -> None:
    found = version(library)
    if found[:2] != (3, 2):
        raise UnavailableError(
            f"{path} is oneDNN {'.'.join(map(str, found))}; version 3.2 is needed"
        )


def _declare(library: ctypes.CDLL) -> None:
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, f"dnnl_{name}")
        function.argtypes = arguments
        function.restype = c_int
    library.dnnl_memory_desc_get_size.argtypes = (Handle,)
    library.dnnl_memory_desc_get_size.restype = c_size_t
    library.dnnl_memory_desc_equal.argtypes = (Handle, Handle)
    library.dnnl_memory_desc_equal.restype = c_int
    library.dnnl_primitive_desc_query_md.argtypes = (Handle, c_int, c_int)
    library.dnnl_primitive_desc_query_md.restype = c_void_p
