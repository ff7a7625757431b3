"""A stand-in for CuPy, cuBLAS and cuDNN on machines without a GPU, stricter than they are.

Arrays refuse to meet NumPy arrays and NumPy's functions; what would make the host wait for the
device is counted; the array functions are those of CuPy that the layers use. While a stream
captures, nothing is computed: new arrays hold NaN until the graph is launched. Memory that was
never written holds NaN too. Kernels are the real ones, compiled for the host.

Work is refused that CuPy would do on another GPU, or on the default stream, which waits for no
other; and so is work that reads in one thread what it writes in another. A graph is not launched
when memory that it uses was given back since.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import operator
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from protocaffe.engines.cuda.device import Device
from protocaffe.engines.cuda.dnn import Dnn
from protocaffe.engines.cuda.engine import CudaEngine
from protocaffe.engines.cuda.forms import FLOAT32, Precision
from protocaffe.engines.cuda.library import CuBlas
from tests.engines.cuda.host_kernels import COMPILER, check_and_pack, compiled

FUNCTIONS = frozenset(
    """abs add all any arange argsort array asarray bincount broadcast_to ceil clip concatenate
    copysign cumsum divide empty empty_like exp floor fmax full full_like isnan log log1p matmul
    maximum mean minimum moveaxis multiply negative nonzero ones ones_like repeat searchsorted
    sign sqrt square stack subtract sum take take_along_axis tanh tile trunc where zeros
    zeros_like""".split()  # noqa: SIM905
)
"""The functions of CuPy 14 that layers may use; all are in its documentation."""

KERNEL_COST = 0.01
"""Milliseconds that a kernel of our own takes."""

UPLOADS = ("array", "asarray")
WAITS = ("nonzero", "repeat", "bincount")
"""Functions whose result's size the host has to know."""


GPU = 1
"""The number of the one that is there: a thread that does not choose it uses another, 0."""


class Current(threading.local):
    """What CuPy does a thread's work on."""

    def __init__(self) -> None:
        self.devices = [0]
        self.streams: list[Stream] = []

    def check(self) -> None:
        """Refuse work on other devices and on the default stream."""
        assert self.devices[-1] == GPU, "work for another GPU: outside of the engine's context"
        assert self.streams, "work on the default stream: outside of the engine's context"


current = Current()


class DeviceContext:
    """A GPU; in its context it is the one that is used."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __enter__(self) -> DeviceContext:
        current.devices.append(self._number)
        return self

    def __exit__(self, *_: object) -> None:
        current.devices.pop()


class Memory:
    """A piece of memory, as long as an array that lies in it is there."""

    __slots__ = ("__weakref__",)

    def __init__(self) -> None:
        if recorder.capturing is not None:
            recorder.capturing.own.add(self)


class Capture:
    """What a stream has captured: the work, its own memory, and that from elsewhere."""

    def __init__(self) -> None:
        self.works: list[Callable[[], None]] = []
        self.own: weakref.WeakSet[Memory] = weakref.WeakSet()
        self.others: dict[int, weakref.ref[Memory]] = {}

    def note(self, memory: Memory) -> None:
        if memory not in self.own:
            self.others[id(memory)] = weakref.ref(memory)


class Recorder:
    """What happens on the device, and what the host had to wait for."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.capturing: Capture | None = None
        self.clock = 0.0

    def queue(self, work: Callable[[], None]) -> None:
        """Do work on the device, or capture it."""
        current.check()
        if self.capturing is None:
            work()
        else:
            self.capturing.works.append(work)

    def use(self, memory: Memory) -> None:
        """Note what a captured graph reads or writes."""
        if self.capturing is not None:
            self.capturing.note(memory)

    def pass_time(self, milliseconds: float) -> None:
        """Let the device be busy, unless it is told what to do later."""
        if self.capturing is None:
            self.clock += milliseconds

    def wait(self, why: str) -> None:
        """Note that the host waits for the device, which ends a capture in real life."""
        assert self.capturing is None, f"{why} while a stream captures"
        self.counts[why] += 1

    def upload(self) -> None:
        """Note a copy to the device."""
        current.check()
        assert self.capturing is None, "a copy from the host while a stream captures"
        self.counts["set"] += 1


recorder = Recorder()


class Array:
    """An array on the device."""

    __array_ufunc__ = None

    def __init__(self, host: np.ndarray, memory: Memory | None = None) -> None:
        self.host = np.asarray(host)
        self.memory = Memory() if memory is None else memory

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("an array on the device was given to NumPy")

    def __getattr__(self, name: str) -> Any:
        if name in ("shape", "size", "ndim", "dtype", "nbytes", "itemsize", "flags", "strides"):
            return getattr(self.host, name)
        if name in (
            "reshape",
            "ravel",
            "swapaxes",
            "transpose",
            "view",
            "astype",
            "copy",
            "sum",
            "mean",
        ):
            return lambda *args, **kwargs: call(getattr(np.ndarray, name), (self, *args), kwargs)
        if name in ("max", "min", "argmax", "any", "all", "cumsum"):
            return lambda *args, **kwargs: call(getattr(np.ndarray, name), (self, *args), kwargs)
        raise AttributeError(f"CuPy's arrays are not used for their '{name}' here")

    @property
    def T(self) -> Array:  # noqa: N802
        return Array(self.host.T, self.memory)

    @property
    def data(self) -> Any:
        recorder.use(self.memory)
        return SimpleNamespace(ptr=self.host.ctypes.data)

    def get(self, out: np.ndarray | None = None) -> np.ndarray:
        current.check()
        recorder.wait("get")
        if out is None:
            return self.host.copy()
        assert out.shape == self.shape
        assert out.dtype == self.dtype
        out[...] = self.host
        return out

    def set(self, values: np.ndarray, stream: Stream | None = None) -> None:
        assert isinstance(values, np.ndarray)
        assert values.shape == self.shape
        assert values.dtype == self.dtype
        assert self.host.flags.c_contiguous
        recorder.upload()
        self.host[...] = values

    def fill(self, value: Any) -> None:
        recorder.use(self.memory)
        recorder.queue(lambda: self.host.fill(value))

    def tolist(self) -> list[Any]:
        recorder.wait("tolist")
        return self.host.tolist()

    def item(self) -> Any:
        recorder.wait("item")
        return self.host.item()

    def __len__(self) -> int:
        return len(self.host)

    def __iter__(self) -> Any:
        return (Array(self.host[index], self.memory) for index in range(len(self.host)))

    def __getitem__(self, key: Any) -> Array:
        _note_waits(key)
        return call(operator.getitem, (self, key), {})

    def __setitem__(self, key: Any, value: Any) -> None:
        _note_waits(key)
        place, values = unwrap(key), unwrap(value)
        recorder.use(self.memory)
        refuse_overlap(self.host[place], values)
        recorder.queue(lambda: operator.setitem(self.host, place, values))

    def __float__(self) -> float:
        recorder.wait("float")
        return float(self.host)

    def __int__(self) -> int:
        recorder.wait("int")
        return int(self.host)

    __index__ = __int__

    def __bool__(self) -> bool:
        recorder.wait("bool")
        return bool(self.host)

    __hash__ = None  # type: ignore[assignment]


def _add_operators() -> None:
    names = "add sub mul truediv floordiv pow matmul and or xor mod"
    for name in names.split():
        plain = getattr(operator, f"{name}_" if name in ("and", "or") else name)

        def forward(self: Array, other: Any, plain: Any = plain) -> Array:
            return call(plain, (self, other), {})

        def reflected(self: Array, other: Any, plain: Any = plain) -> Array:
            return call(plain, (other, self), {})

        def in_place(self: Array, other: Any, name: str = name) -> Array:
            change, values = getattr(operator, f"i{name}"), unwrap(other)
            recorder.use(self.memory)
            refuse_overlap(self.host, values)
            recorder.queue(lambda: change(self.host, values))
            return self

        setattr(Array, f"__{name}__", forward)
        setattr(Array, f"__r{name}__", reflected)
        setattr(Array, f"__i{name}__", in_place)
    for name in ["lt", "le", "gt", "ge", "eq", "ne"]:
        plain = getattr(operator, name)
        setattr(Array, f"__{name}__", lambda self, other, f=plain: call(f, (self, other), {}))
    for name in ["neg", "abs", "invert"]:
        plain = getattr(operator, name)
        setattr(Array, f"__{name}__", lambda self, f=plain: call(f, (self,), {}))


_add_operators()


def unwrap(value: Any) -> Any:
    """Return what NumPy is to compute with; refuse arrays that are NumPy's own."""
    if isinstance(value, Array):
        recorder.use(value.memory)
        return value.host
    if isinstance(value, (list, tuple)):
        return type(value)(unwrap(each) for each in value)
    if isinstance(value, np.ndarray):
        raise TypeError("a NumPy array met an array on the device")
    return value


def refuse_overlap(target: np.ndarray, *values: Any) -> None:
    """Refuse to write where another thread still reads; NumPy would make a copy first."""
    for each in values:
        if isinstance(each, np.ndarray) and np.may_share_memory(target, each):
            same = target.__array_interface__ == each.__array_interface__
            assert same or not np.shares_memory(target, each), "it reads what it writes elsewhere"


def _note_waits(key: Any) -> None:
    for each in key if isinstance(key, tuple) else (key,):
        if isinstance(each, Array) and each.dtype == bool:
            recorder.wait("mask")
        if isinstance(each, list):
            recorder.upload()


def call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute on the device, or capture it: then a new array is NaN until the launch."""
    current.check()
    values = [unwrap(each) for each in args]
    options = {name: unwrap(each) for name, each in kwargs.items()}
    given = [each for each in (*args, *kwargs.values()) if isinstance(each, Array)]
    out = kwargs.get("out")
    if out is not None:
        refuse_overlap(out.host, *values)
        recorder.queue(lambda: _quietly(function, values, options))
        return out
    result = _quietly(function, values, options)
    if isinstance(result, tuple):
        assert recorder.capturing is None
        return tuple(_array(each, given) for each in result)
    result = np.asarray(result)
    made = _array(result, given)
    if recorder.capturing is not None and not any(made.memory is each.memory for each in given):
        _spoil(result)
        recorder.queue(lambda: np.copyto(result, _quietly(function, values, options)))
    return made


def _quietly(function: Any, values: list[Any], options: dict[str, Any]) -> Any:
    with np.errstate(all="ignore"):
        return function(*values, **options)


def _array(result: np.ndarray, given: list[Array]) -> Array:
    """Return what was computed as an array; a view lies in the memory of what it is a view of."""
    for each in given:
        if np.may_share_memory(result, each.host):
            return Array(result, each.memory)
    return Array(result)


def _spoil(array: np.ndarray) -> None:
    array.fill(np.nan if array.dtype.kind == "f" else 1)


class Stream:
    """A stream; all are one."""

    ptr = 1

    def __init__(self, non_blocking: bool = False) -> None:
        assert non_blocking, "only such a stream can capture beside others"
        assert current.devices[-1] == GPU

    def __enter__(self) -> Stream:
        assert current.devices[-1] == GPU, "a stream of another device"
        current.streams.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        current.streams.pop()

    def begin_capture(self) -> None:
        assert recorder.capturing is None
        recorder.capturing = Capture()

    def end_capture(self) -> Graph:
        assert recorder.capturing is not None
        graph, recorder.capturing = Graph(recorder.capturing), None
        return graph

    def synchronize(self) -> None:
        recorder.wait("synchronize")

    def is_capturing(self) -> bool:
        return recorder.capturing is not None

    def record(self) -> Event:
        assert current.devices[-1] == GPU, "an event of another device"
        return Event()

    def wait_event(self, event: Event) -> None:
        """Everything is in order anyway."""


class Event:
    """Something on a stream."""

    time: float | None = None

    def record(self, stream: Stream) -> None:
        assert recorder.capturing is None
        self.time = recorder.clock

    def synchronize(self) -> None:
        recorder.counts["event"] += 1


def get_elapsed_time(start: Event, stop: Event) -> float:
    assert start.time is not None
    assert stop.time is not None
    return stop.time - start.time


class Graph:
    """Captured work."""

    def __init__(self, captured: Capture) -> None:
        self._captured = captured

    def launch(self, stream: Stream) -> None:
        lost = [ref for ref in self._captured.others.values() if ref() is None]
        assert not lost, "a graph uses memory that was given back"
        recorder.counts["launch"] += 1
        for work in self._captured.works:
            work()


def _is_structure(value: Any) -> bool:
    """Whether CuPy passes it by value."""
    return isinstance(value, np.ndarray) and value.size == 1 and value.dtype.names is not None


class RawModule:
    """Kernels, from source."""

    def __init__(self, *, code: str, options: tuple[str, ...]) -> None:
        assert options[0] == "--std=c++17"
        self._kernels, self._library = compiled(code, *options[1:])

    def compile(self) -> None:
        """Nothing is left to do."""

    def get_function(self, name: str) -> Callable[..., None]:
        assert current.devices[-1] == GPU, "a kernel for another device"
        kernel = self._kernels[name]
        launch = self._library[f"launch_{name}"]

        def run(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
            assert block == (256,)
            assert grid[0] > 0
            values = tuple(each if _is_structure(each) else unwrap(each) for each in arguments)
            packed = check_and_pack(kernel, self._library, values)
            recorder.queue(lambda: launch(ctypes.c_uint(grid[0]), packed))
            recorder.pass_time(KERNEL_COST)

        return run


class MemoryPool:
    """Where memory comes from. CuPy loses the free memory of one that is dropped."""

    def __init__(self) -> None:
        recorder.counts["pool"] += 1

    def malloc(self, size: int) -> None:
        raise NotImplementedError

    def free_all_blocks(self) -> None:
        current.check()


def alloc_pinned_memory(size: int) -> bytearray:
    """Allocate memory of the host for copies."""
    assert current.devices[-1] == GPU, "memory for another device"
    return bytearray(size)


@contextmanager
def using_allocator(allocator: object) -> Any:
    yield


class CuPy:
    """The module."""

    RawModule = RawModule
    cuda = SimpleNamespace(
        Device=DeviceContext,
        Stream=Stream,
        MemoryPool=MemoryPool,
        alloc_pinned_memory=alloc_pinned_memory,
        using_allocator=using_allocator,
        Event=Event,
        get_elapsed_time=get_elapsed_time,
        get_current_stream=lambda: current.streams[-1],
    )

    def __getattr__(self, name: str) -> Any:
        if name in ("int64", "newaxis"):
            return getattr(np, name)
        if name not in FUNCTIONS:
            raise AttributeError(f"'{name}' is none of CuPy's functions that layers may use")
        function = getattr(np, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            if name in UPLOADS and not isinstance(args[0], Array):
                recorder.upload()
                return Array(np.array(*args, **kwargs))
            if name in WAITS:
                recorder.wait(name)
            result = call(function, args, kwargs)
            if name in ("empty", "empty_like"):
                _spoil(result.host)
            return result

        return run


KINDS = {0: "float", 2: "half", 14: "bfloat16"}
"""CUDA's numbers of types."""
WIDTHS: dict[str, Any] = {
    "float": ctypes.c_float,
    "half": ctypes.c_uint16,
    "bfloat16": ctypes.c_uint16,
}


def memory(address: int | None, count: int, kind: str) -> np.ndarray:
    """View device memory."""
    pointer = ctypes.cast(address, ctypes.POINTER(WIDTHS[kind]))
    return np.ctypeslib.as_array(pointer, (count,))


@dataclass(frozen=True)
class Matrix:
    """A matrix in memory as cuBLAS is told of it: in column order, perhaps to be turned."""

    array: np.ndarray
    kind: str
    turned: bool

    @classmethod
    def at(cls, address: Any, kind: int, op: int, rows: int, columns: int, lead: int) -> Matrix:
        if op:
            rows, columns = columns, rows
        assert min(rows, columns) > 0
        assert lead >= rows
        count = lead * (columns - 1) + rows
        flat = memory(address.value, count, KINDS[kind])
        step = flat.itemsize
        array = np.lib.stride_tricks.as_strided(flat, (rows, columns), (step, lead * step))
        return cls(array, KINDS[kind], bool(op))

    def read(self) -> np.ndarray:
        numbers = from_bits(np.ascontiguousarray(self.array), self.kind)
        return numbers.T if self.turned else numbers

    def write(self, numbers: np.ndarray) -> None:
        self.array[...] = to_bits(np.ascontiguousarray(numbers), self.kind)


class CublasLibrary:
    """cuBLAS, as far as the engine calls it."""

    def __init__(self, half: str | None = None) -> None:
        self._kinds = {"float", half or "float"}
        self._calls: list[str] = []

    def cublasCreate_v2(self, handle: Any) -> int:  # noqa: N802
        return 0

    def cublasSetStream_v2(self, handle: Any, stream: Any) -> int:  # noqa: N802
        self._calls.append("stream")
        return 0

    def cublasSetWorkspace_v2(self, handle: Any, address: Any, size: Any) -> int:  # noqa: N802
        assert self._calls == ["stream"], "setting a stream forgets the workspace"
        assert address.value
        assert size.value >= 32 << 20, "what NVIDIA recommends for Hopper"
        return 0

    def cublasSetMathMode(self, handle: Any, mode: int) -> int:  # noqa: N802
        assert mode in (16, 19), "exact or TF32; either way sums are float32"
        return 0

    def cublasGetStatusString(self, status: int) -> bytes:  # noqa: N802
        assert status == 15
        return b"the requested functionality is not supported"

    def cublasGemmEx(self, *arguments: Any) -> int:  # noqa: N802
        _, op_a, op_b, m, n, k, alpha, a, a_kind, lda, *others = arguments
        b, b_kind, ldb, beta, c, c_kind, ldc, compute, algorithm = others
        assert isinstance(alpha._obj, ctypes.c_float)
        assert isinstance(beta._obj, ctypes.c_float)
        assert (compute, algorithm) == (68, -1)
        if a_kind != b_kind or c_kind not in (0, a_kind):
            return 15
        first = Matrix.at(a, a_kind, op_a, m, k, lda)
        second = Matrix.at(b, b_kind, op_b, k, n, ldb)
        result = Matrix.at(c, c_kind, 0, m, n, ldc)
        assert {first.kind, result.kind} <= self._kinds
        factor, before = alpha._obj.value, beta._obj.value

        def multiply() -> None:
            product = factor * (first.read() @ second.read())
            result.write(product + before * result.read() if before else product)

        recorder.queue(multiply)
        return 0


def from_bits(array: np.ndarray, kind: str) -> np.ndarray:
    """Return what numbers of a type stand for, as float32."""
    if kind == "float":
        return array
    if kind == "half":
        return array.view(np.float16).astype(np.float32)
    return (array.astype(np.uint32) << 16).view(np.float32)


def to_bits(array: np.ndarray, kind: str) -> np.ndarray:
    """Return float32 numbers rounded to a type; 16-bit ones as whole numbers."""
    if kind == "float":
        return array
    if kind == "half":
        with np.errstate(over="ignore"):
            return array.astype(np.float16).view(np.uint16)
    whole = array.view(np.uint32)
    rounded = (whole + 0x7FFF + (whole >> 16 & 1)) >> 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype(np.uint16)


class NotSupportedError(Exception):
    """No engine for a graph, or a plan that was deselected."""


class Tensor:
    """A tensor of a graph."""

    def __init__(self, kind: str = "") -> None:
        self.uid, self.dim, self.stride, self.kind, self.is_output = 0, [], [], kind, False

    def set_uid(self, uid: int) -> Tensor:
        self.uid = uid
        return self

    def set_dim(self, dim: list[int]) -> Tensor:
        assert all(type(each) is int for each in dim)
        self.dim = dim
        return self

    def set_stride(self, stride: list[int]) -> Tensor:
        assert all(type(each) is int for each in stride)
        self.stride = stride
        return self

    def set_output(self, output: bool) -> Tensor:
        self.is_output = output
        return self

    @property
    def count(self) -> int:
        return int(np.prod(self.dim))

    def numbers(self, address: int) -> np.ndarray:
        """View the memory of one, in its type."""
        assert address % 16 == 0, f"tensor {self.uid} begins at {address}, no multiple of 16"
        return memory(address, self.count, self.kind)

    def view(self, numbers: np.ndarray) -> np.ndarray:
        """View float32 numbers as the tensor has them."""
        last = sum((extent - 1) * step for extent, step in zip(self.dim, self.stride, strict=True))
        assert last + 1 == self.count, f"strides {self.stride} of {self.dim} leave gaps"
        steps = [4 * step for step in self.stride]
        return np.lib.stride_tricks.as_strided(numbers, self.dim, steps)


@dataclass(frozen=True)
class PlanOfCudnn:
    """A way to run a graph.

    Attributes:
        cost: milliseconds that a run takes.
        workspace: bytes that it needs.
        notes: what the engine does to numbers.
        fault: what goes wrong: "" for nothing, "build" or "run".
    """

    cost: float = 1.0
    workspace: int = 1000
    notes: tuple[str, ...] = ()
    fault: str = ""


PLANS = (PlanOfCudnn(notes=("tensor core",)), PlanOfCudnn(), PlanOfCudnn(workspace=5000))


class Cudnn:
    """The module, and what its library can do.

    Args:
        plans: those of every graph, in the heuristic's order.
        refused: what there is no engine for: of "grid", "image", "weights" (what is computed),
            "bias" and "relu".
        slow: which of these make a run take a second longer.
    """

    cudnnGraphNotSupportedError = NotSupportedError  # noqa: N815
    data_type = SimpleNamespace(FLOAT="float", HALF="half", BFLOAT16="bfloat16")
    heur_mode = SimpleNamespace(A="A", B="B", FALLBACK="FALLBACK")
    numerical_note = SimpleNamespace(
        TENSOR_CORE="tensor core", DOWN_CONVERT_INPUTS="down", NONDETERMINISTIC="any order"
    )

    def __init__(
        self,
        plans: Sequence[PlanOfCudnn] = PLANS,
        refused: Sequence[str] = (),
        slow: Sequence[str] = (),
    ) -> None:
        self.plans = plans
        self.refused = refused
        self.slow = slow
        self.graphs: list[Pygraph] = []

    def create_handle(self) -> object:
        return self

    def set_stream(self, *, handle: object, stream: int) -> None:
        assert handle is self
        assert stream == Stream.ptr

    def pygraph(self, **settings: Any) -> Pygraph:
        self.graphs.append(Pygraph(self, **settings))
        return self.graphs[-1]


class Pygraph:
    """cuDNN's graph of a convolution and what follows it; its steps have one order."""

    STEPS = ("", "validate", "build_operation_graph", "create_execution_plans", "check_support")

    def __init__(
        self,
        cudnn: Cudnn,
        *,
        handle: object,
        io_data_type: str,
        intermediate_data_type: str,
        compute_data_type: str,
    ) -> None:
        assert intermediate_data_type == compute_data_type == "float"
        self.cudnn, self._type, self._step = cudnn, io_data_type, ""
        self.runs: list[int] = []
        self.features: set[str] = set()
        self._bias: Tensor | None = None
        self._built: set[int] = set()
        self._barred: set[int] = set()

    def tensor(self, *, name: str, dim: list[int], stride: list[int]) -> Tensor:
        return Tensor(self._type).set_dim(dim).set_stride(stride)

    def conv_fprop(self, *, image: Tensor, weight: Tensor, **windows: Any) -> Tensor:
        return self._convolve("grid", image, weight, windows)

    def conv_dgrad(self, *, loss: Tensor, filter: Tensor, **windows: Any) -> Tensor:  # noqa: A002
        return self._convolve("image", loss, filter, windows)

    def conv_wgrad(self, *, image: Tensor, loss: Tensor, **windows: Any) -> Tensor:
        return self._convolve("weights", image, loss, windows)

    def _convolve(self, what: str, one: Tensor, other: Tensor, windows: Any) -> Tensor:
        assert set(windows) == {"padding", "stride", "dilation"}
        self._what, self._inputs, self._windows = what, (one, other), windows
        self._result = Tensor(self._type)
        self.features.add(what)
        return self._result

    def bias(self, *, input: Tensor, bias: Tensor) -> Tensor:  # noqa: A002
        assert input is self._result
        assert math.prod(bias.dim) == bias.dim[1], "one number per channel"
        self._bias = bias
        self.features.add("bias")
        return self._result

    def relu(self, *, input: Tensor) -> Tensor:  # noqa: A002
        assert input is self._result
        self.features.add("relu")
        return self._result

    def validate(self) -> None:
        self._advance("validate")
        assert self._result.is_output, "nothing is computed"
        for tensor in self._tensors():
            assert len(tensor.dim) == len(tensor.stride) == len(self._result.dim)

    def build_operation_graph(self) -> None:
        self._advance("build_operation_graph")

    def create_execution_plans(self, modes: list[str]) -> None:
        self._advance("create_execution_plans")
        assert set(modes) <= set(vars(self.cudnn.heur_mode).values())
        if self.features & set(self.cudnn.refused):
            raise NotSupportedError("No valid engine configs")

    def deselect_numeric_notes(self, notes: list[str]) -> None:
        assert self._step == "create_execution_plans"
        plans = enumerate(self.cudnn.plans)
        self._barred = {index for index, plan in plans if set(plan.notes) & set(notes)}

    def check_support(self) -> None:
        self._advance("check_support")
        if len(self._barred) == len(self.cudnn.plans):
            raise NotSupportedError("No execution plans support the graph")

    def _advance(self, step: str) -> None:
        assert self._step == self.STEPS[self.STEPS.index(step) - 1], f"{step} after {self._step}"
        self._step = step

    def get_execution_plan_count(self) -> int:
        return len(self.cudnn.plans)

    def build_plan_at_index(self, index: int) -> None:
        assert self._step == "check_support"
        assert recorder.capturing is None, "a plan is built while a stream captures"
        self._check_range(index)
        if index in self._barred or self.cudnn.plans[index].fault == "build":
            raise NotSupportedError("Deselecting execution plan")
        self._built.add(index)

    def get_workspace_size_plan_at_index(self, index: int) -> int:
        self._check_range(index)
        assert index in self._built, "this would be 0"
        return self.cudnn.plans[index].workspace

    def _check_range(self, index: int) -> None:
        if not 0 <= index < len(self.cudnn.plans):
            raise RuntimeError(f"Plan index {index} is invalid.")

    def execute_plan_at_index(
        self, addresses: dict[int, int], workspace: int, index: int, *, handle: object
    ) -> None:
        self._check_range(index)
        assert index in self._built, "a plan runs that was not built"
        assert handle is self.cudnn
        assert workspace % 16 == 0
        plan = self.cudnn.plans[index]
        if plan.fault == "run":
            raise RuntimeError("CUDNN_STATUS_EXECUTION_FAILED")
        tensors = self._tensors()
        assert set(addresses) == {each.uid for each in tensors}
        flat = [each.numbers(addresses[each.uid]) for each in tensors]
        self.runs.append(index)
        recorder.queue(lambda: self._run(tensors, flat))
        recorder.pass_time(plan.cost + 1000 * bool(self.features & set(self.cudnn.slow)))

    def _tensors(self) -> list[Tensor]:
        bias = [self._bias] if self._bias is not None else []
        return [*self._inputs, self._result, *bias]

    def _run(self, tensors: list[Tensor], flat: list[np.ndarray]) -> None:
        kinds = [tensor.kind for tensor in tensors]
        numbers = [from_bits(each, kind) for each, kind in zip(flat, kinds, strict=True)]
        numbers[2] = np.full(tensors[2].count, np.nan, np.float32)
        views = [each.view(values) for each, values in zip(tensors, numbers, strict=True)]
        _convolve(self._what, *views[:3], **self._windows)
        with np.errstate(all="ignore"):
            if "bias" in self.features:
                views[2] += views[3]
            if "relu" in self.features:
                np.maximum(views[2], 0, out=views[2])
            flat[2][...] = to_bits(numbers[2], kinds[2])


def _convolve(what, one, other, result, *, padding, stride, dilation):
    image = {"grid": one, "image": result, "weights": one}[what]
    weights = {"grid": other, "image": other, "weights": result}[what]
    grid = {"grid": result, "image": one, "weights": other}[what]
    around = [(0, 0), (0, 0), *((pad, pad) for pad in padding)]
    padded = np.pad(np.zeros_like(image) if what == "image" else image, around)
    groups = image.shape[1] // weights.shape[1]
    rows = grid.reshape(len(grid), groups, -1, *grid.shape[2:])
    filters = weights.reshape(groups, -1, *weights.shape[1:])
    sums = np.zeros_like(rows)
    for place in itertools.product(*map(range, weights.shape[2:])):
        part = tuple(
            slice(k * d, k * d + s * (extent - 1) + 1, s)
            for k, d, s, extent in zip(place, dilation, stride, grid.shape[2:], strict=True)
        )
        view = padded[(slice(None), slice(None), *part)]
        patch = view.reshape(len(grid), groups, -1, *grid.shape[2:])
        w = filters[(slice(None), slice(None), slice(None), *place)]
        if what == "grid":
            sums += np.einsum("gkc,ngc...->ngk...", w, patch)
        elif what == "image":
            view += np.einsum("gkc,ngk...->ngc...", w, rows).reshape(view.shape)
        else:
            axes = "xyz"[: len(padding)]
            w[...] = np.einsum(f"ngk{axes},ngc{axes}->gkc", rows, patch)
    if what == "grid":
        result[...] = sums.reshape(grid.shape)
    elif what == "image":
        inner = tuple(
            slice(pad, pad + extent) for pad, extent in zip(padding, image.shape[2:], strict=True)
        )
        result[...] = padded[(slice(None), slice(None), *inner)]


def standin_engine(
    captures: bool = True,
    precision: Precision = FLOAT32,
    cudnn: Cudnn | None = None,
    autotune: bool = False,
) -> CudaEngine:
    """Return the CUDA engine over the stand-ins; skip the test without a compiler for them."""
    if COMPILER is None:
        pytest.skip("no g++ here, which compiles the kernels for the stand-in")
    cupy = CuPy()
    blas = CublasLibrary({"fp16": "half", "bf16": "bfloat16"}.get(precision.name))
    library = cudnn or Cudnn()
    device = Device(
        cupy,
        GPU,
        lambda stream, workspace: CuBlas(blas, stream, workspace, precision),
        lambda stream: Dnn(library, cupy, stream, precision, autotune),
        precision,
    )
    return CudaEngine(device, captures)
