"""What is said where the GPU's libraries are missing; and cuBLAS's way to see matrices."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from protocaffe.engines import get_engine
from protocaffe.engines.cuda.forms import PRECISIONS
from protocaffe.engines.cuda.library import (
    UnavailableError,
    explained,
    fitting,
    load_cublas,
    load_cudnn,
    load_cupy,
)
from protocaffe.errors import UsageError
from tests.engines.cuda.standin import Array, from_bits, standin_engine, to_bits


class CUDARuntimeError(RuntimeError):
    """What CuPy raises without a driver."""


def _cupy(version: str, gpus: int) -> SimpleNamespace:
    def count() -> int:
        if not gpus:
            raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
        return gpus

    runtime = SimpleNamespace(getDeviceCount=count, CUDARuntimeError=CUDARuntimeError)
    return SimpleNamespace(__version__=version, cuda=SimpleNamespace(runtime=runtime))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, r"CuPy is missing .*; pip install 'protocaffe\[gpu\]'"),
        (_cupy("13.6.0", 1), r"CuPy is 13.6.0 and has to be 14 or newer; pip install"),
        (_cupy("14.2.0", 0), "no GPU can be used: .*no CUDA-capable device .*nvidia-smi"),
        (_cupy("14.2.0", 2), "there is no GPU 3; this machine has 0 to 1"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, module: SimpleNamespace | None, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", module)
    with pytest.raises(UnavailableError, match=message) as raised:
        load_cupy(3)
    assert "\n" not in str(raised.value)
    with pytest.raises(UsageError, match="the cuda engine cannot run here: "):
        get_engine("cuda", gpu=3)


@pytest.mark.parametrize(
    ("version", "frontend", "message"),
    [
        (8902, "1.26.0", "cuDNN 8902 is none of version 9"),
        (None, "", "cuDNN is missing"),
        (92800, "1.32.0", "frontend is 1.32.0, .* pip install 'nvidia-cudnn-frontend<1.27'"),
    ],
)
def test_a_cudnn_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, version: int | None, frontend: str, message: str
) -> None:
    found = SimpleNamespace(backend_version=lambda: version, __version__=frontend)
    monkeypatch.setitem(sys.modules, "cudnn", found if version else None)
    with pytest.raises(UnavailableError, match=message):
        load_cudnn()


class CuPysLibraries(ModuleType):
    """CuPy's package of libraries, which finds one only for who asks for its attribute."""

    is_there = True

    def __getattr__(self, name: str) -> object:
        if name != "cublas":
            raise AttributeError(name)
        if not self.is_there:
            raise ImportError("libcublas.so.13\nwas not found")
        return "cuBLAS"


def test_cublas_is_found_as_cupy_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("cupy_backends", "cupy_backends.cuda", "cupy_backends.cuda.libs")
    libraries = CuPysLibraries(names[-1])
    for name, module in zip(names, (ModuleType(""), ModuleType(""), libraries), strict=True):
        monkeypatch.setitem(sys.modules, name, module)
    opened = SimpleNamespace(cublasGetStatusString=SimpleNamespace(restype=ctypes.c_int))
    monkeypatch.setattr("ctypes.CDLL", {"libcublas.so.13": opened}.__getitem__)
    runtime = SimpleNamespace(runtimeGetVersion=lambda: 13020)
    cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))
    assert load_cublas(cupy) is opened
    assert opened.cublasGetStatusString.restype is ctypes.c_char_p, "else it returns a number"
    libraries.is_there = False
    with pytest.raises(UnavailableError, match=r"cuBLAS is missing \(libcublas.so.13 was not"):
        load_cublas(cupy)


class CompileError(Exception):
    """What CuPy raises where its compiler refuses kernels."""


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find CUDA headers.\nPlease install"),
        CompileError("Failed to find CUDA headers. Please install"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_explained_in_one_line(error: Exception) -> None:
    compiler = SimpleNamespace(CompileException=CompileError)
    cupy = SimpleNamespace(cuda=SimpleNamespace(compiler=compiler))
    with (
        pytest.raises(UnavailableError, match=r"GPU 1 cannot .*CUDA headers. Please .*pip install"),
        explained(cupy, 1),
    ):
        raise error


@pytest.mark.parametrize(
    ("there", "fitting_ones"),
    [
        ((9, 0), ["float32", "tf32", "fp16", "bf16"]),
        ((7, 5), ["float32", "fp16"]),
        ((6, 1), ["float32"]),
    ],
)
def test_a_gpu_without_the_tensor_cores_computes_with_float32(
    there: tuple[int, int], fitting_ones: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    properties = dict(zip(("major", "minor"), there, strict=True))
    runtime = SimpleNamespace(getDeviceProperties=lambda number: properties)
    cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))
    for name, precision in PRECISIONS.items():
        caplog.clear()
        found = fitting(precision, cupy, 1)
        assert found is PRECISIONS[name if name in fitting_ones else "float32"]
        said = [] if found is precision else [f"GPU 1 has compute capability {there[0]}.{there[1]}"]
        assert [each.message.split(",")[0] for each in caplog.records] == said


def test_work_on_the_cpu_imports_no_cupy() -> None:
    code = """if True:
        import sys, protocaffe
        net = protocaffe.Net('layer { name: "x" type: "Input" top: "x" '
                             'input_param { shape { dim: 1 } } }')
        net.forward()
        import protocaffe.cli.train, protocaffe.cli.device_query
        assert not {"cupy", "cudnn"} & sys.modules.keys()"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 4), (1, 5, 1), (4, 3, 2)])
@pytest.mark.parametrize(("a_turned", "b_turned"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm_of_matrices_in_row_order(
    shape: tuple[int, int, int], a_turned: int, b_turned: int, add: bool
) -> None:
    rows, inner, columns = shape
    rng = np.random.default_rng(0)

    def matrix(height: int, width: int, turned: int) -> Array:
        made = rng.random((width, height) if turned else (height, width)).astype(np.float32)
        return Array(made.T if turned else made)

    a, b = matrix(rows, inner, a_turned), matrix(inner, columns, b_turned)
    out = matrix(rows, columns, 0)
    expected = a.host @ b.host + (out.host if add else 0)
    device = standin_engine().device
    with device.active():
        device.gemm(a, b, out, add)
    np.testing.assert_allclose(out.host, expected, rtol=1e-6)


@pytest.mark.parametrize(("precision", "kind"), [("fp16", "half"), ("bf16", "bfloat16")])
@pytest.mark.parametrize("to_half", [False, True])
def test_gemm_of_16_bit_numbers(precision: str, kind: str, to_half: bool) -> None:
    numbers = np.arange(12, dtype=np.float32)  # whole ones, which 8 bits hold
    a, b = (numbers.reshape(3, 4) - 5, numbers.reshape(4, 3) % 5 - 2)
    out = np.ones((3, 3), np.float32)
    arrays = [Array(to_bits(each, kind)) for each in (a, b)]
    result = Array(to_bits(out, kind) if to_half else out.copy())
    device = standin_engine(precision=PRECISIONS[precision]).device
    with device.active():
        device.gemm(*arrays, result, add=True, factor=0.5)
        got = from_bits(result.host, kind) if to_half else result.host
        np.testing.assert_array_equal(got, a @ b / 2 + 1)
        with pytest.raises(RuntimeError, match=r"cuBLAS says 15: .* not supported"):
            device.gemm(arrays[0], Array(b), result)
