"""The libraries of the CUDA engine, found and opened in one place.

Nothing here is imported before somebody asks for the engine. What is missing is said in one line.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from protocaffe.engines.cuda.forms import FLOAT32, Precision
from protocaffe.log import log

INSTALL = "pip install 'protocaffe[gpu]' (for CUDA 12: 'protocaffe[gpu12]')"

LAST_FRONTEND = (1, 26)


class UnavailableError(Exception):
    """A library, the driver or a GPU is missing; the message says which, and the way out."""


def load_cupy(number: int) -> Any:
    """Return CuPy, with a GPU of that number there to be used.

    Raises:
        UnavailableError: CuPy is not installed or too old, or there is no such GPU.
    """
    try:
        import cupy
    except ImportError as error:
        raise UnavailableError(f"CuPy is missing ({error}); {INSTALL}") from None
    if int(cupy.__version__.split(".")[0]) < 14:
        raise UnavailableError(f"CuPy is {cupy.__version__} and has to be 14 or newer; {INSTALL}")
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise UnavailableError(
            f"no GPU can be used: {error}; it takes an NVIDIA GPU and a driver that nvidia-smi "
            f"lists with a CUDA version no older than CuPy's"
        ) from None
    if number >= count:
        there = "0" if count == 1 else f"0 to {count - 1}"
        raise UnavailableError(f"there is no GPU {number}; this machine has {there}")
    return cupy


def load_cudnn() -> Any:
    """Return the module ``cudnn``, with its library.

    Raises:
        UnavailableError: one of the two is missing, or of a version that this engine cannot use.
    """
    try:
        import cudnn

        version = cudnn.backend_version()
    except (ImportError, RuntimeError) as error:
        raise UnavailableError(f"cuDNN is missing ({error}); {INSTALL}") from None
    if not 90000 <= version < 100000:
        raise UnavailableError(f"cuDNN {version} is none of version 9; {INSTALL}")
    if tuple(int(part) for part in cudnn.__version__.split(".")[:2]) > LAST_FRONTEND:
        raise UnavailableError(
            f"cuDNN's frontend is {cudnn.__version__}, and its interface is known up to 1.26 only; "
            f"pip install 'nvidia-cudnn-frontend<1.27'"
        )
    return cudnn


@contextmanager
def explained(cupy: Any, number: int) -> Iterator[None]:
    """Say in one line why a GPU cannot be used, if what is done in this context fails."""
    try:
        yield
    except (RuntimeError, MemoryError, cupy.cuda.compiler.CompileException) as error:
        # CuPy's RuntimeErrors say what is missing for its compiler: the library or its headers.
        message = f"GPU {number} cannot be used: {_line(error)}; {INSTALL}"
        raise UnavailableError(message) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def capability(cupy: Any, number: int) -> tuple[int, int]:
    """Return a GPU's compute capability."""
    properties = cupy.cuda.runtime.getDeviceProperties(number)
    return properties["major"], properties["minor"]


def fitting(precision: Precision, cupy: Any, number: int) -> Precision:
    """Return the precision; or float32 with a line in the log, if the GPU is too old for it."""
    there = capability(cupy, number)
    if there >= precision.capability:
        return precision
    log.warning(
        "GPU %d has compute capability %d.%d, and %s takes %d.%d: computing with float32",
        *(number, *there, precision.name, *precision.capability),
    )
    return FLOAT32


class CuBlas:
    """cuBLAS with a handle of its own: CuPy calls none of it while a CUDA graph is captured.

    Args:
        library: the open library.
        stream: the address of the stream it works on.
        workspace: address and bytes of device memory, which a captured graph has to bring along.
        precision: what to compute with.
    """

    def __init__(
        self,
        library: Any,
        stream: int,
        workspace: tuple[int, int],
        precision: Precision = FLOAT32,
    ) -> None:
        self._library = library
        self._half = HALVES.get(precision.name)
        self._handle = ctypes.c_void_p()
        self._check(library.cublasCreate_v2(ctypes.byref(self._handle)))
        # In this order: with another stream, cuBLAS goes back to a workspace of its own.
        self._check(library.cublasSetStream_v2(self._handle, ctypes.c_void_p(stream)))
        address, size = ctypes.c_void_p(workspace[0]), ctypes.c_size_t(workspace[1])
        self._check(library.cublasSetWorkspace_v2(self._handle, address, size))
        self._check(library.cublasSetMathMode(self._handle, _math_mode(precision)))

    def gemm(self, a: Any, b: Any, out: Any, add: bool = False, factor: float = 1.0) -> None:
        """Set ``out = factor * a @ b``, or add that to it.

        To cuBLAS, which counts in columns, our rows are the transpose: out^T = b^T a^T.

        Args:
            a: a matrix in row order or the transpose of one, float32 or 16-bit (uint16) numbers
                of the precision's type.
            b: the same, of the same type.
            out: a matrix in row order of either type; what goes there is added up in float32.
            add: whether it is added to.
            factor: multiplies the product.
        """
        (rows, inner), columns = a.shape, b.shape[1]
        first, first_lead = _operand(b)
        second, second_lead = _operand(a)
        alpha, beta = ctypes.c_float(factor), ctypes.c_float(add)
        self._check(
            self._library.cublasGemmEx(
                *(self._handle, first, second, columns, rows, inner, ctypes.byref(alpha)),
                *(ctypes.c_void_p(b.data.ptr), self._type(b), first_lead),
                *(ctypes.c_void_p(a.data.ptr), self._type(a), second_lead, ctypes.byref(beta)),
                *(ctypes.c_void_p(out.data.ptr), self._type(out), columns),
                *(CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
            )
        )

    def _type(self, matrix: Any) -> int | None:
        return CUDA_R_32F if matrix.dtype == np.float32 else self._half

    def _check(self, status: int) -> None:
        if status:
            reason = self._library.cublasGetStatusString(status).decode()
            raise RuntimeError(f"cuBLAS says {status}: {reason}")


CUBLAS_OP_N, CUBLAS_OP_T = 0, 1
CUBLAS_DEFAULT_MATH, CUBLAS_TF32_TENSOR_OP_MATH = 0, 3
CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION = 16
CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT = 68, -1
CUDA_R_32F = 0
HALVES = {"fp16": 2, "bf16": 14}
"""CUDA's numbers of the types."""


def _math_mode(precision: Precision) -> int:
    """How float32 numbers are multiplied; sums are float32 either way."""
    exact = precision is FLOAT32
    mode = CUBLAS_DEFAULT_MATH if exact else CUBLAS_TF32_TENSOR_OP_MATH
    return mode | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION


def _operand(matrix: Any) -> tuple[int, int]:
    """How cuBLAS is to read a matrix in row order, or the transpose of one: operation and lead."""
    rows, columns = matrix.shape
    if matrix.flags.c_contiguous:
        return CUBLAS_OP_N, columns
    assert matrix.flags.f_contiguous
    return CUBLAS_OP_T, rows


def load_cublas(cupy: Any) -> Any:
    """Return the cuBLAS library that CuPy uses.

    Raises:
        UnavailableError: there is none.
    """
    try:
        # As an attribute: `import cupy_backends.cuda.libs.cublas` does not look in site-packages,
        # where pip puts the library.
        from cupy_backends.cuda.libs import cublas  # noqa: F401
    except ImportError as error:
        raise UnavailableError(f"cuBLAS is missing ({_line(error)}); {INSTALL}") from None
    library = ctypes.CDLL(f"libcublas.so.{cupy.cuda.runtime.runtimeGetVersion() // 1000}")
    library.cublasGetStatusString.restype = ctypes.c_char_p  # else ctypes cuts the address to int
    return library
