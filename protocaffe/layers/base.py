"""What every layer is, built in or a user's own, and how one is found by its type name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from protocaffe.blob import Blob
from protocaffe.errors import LayerError, NetError, near_or_all
from protocaffe.layers.fillers import check_filler, fill
from protocaffe.proto import caffe_pb2
from protocaffe.proto.forks import FORK_TYPES

Bounds = tuple[int, int | None]
"""Least and most number of blobs; None for no upper bound."""


class Parameters(list[Blob]):
    """A layer's learnable blobs.

    Args:
        dtype: type of the blobs that :meth:`add_blob` makes.
    """

    def __init__(self, dtype: npt.DTypeLike) -> None:
        super().__init__()
        self._dtype = dtype

    def add_blob(self, *shape: int) -> Blob:
        """Append a blob of zeros; pycaffe's way to add one."""
        self.append(Blob(shape, self._dtype))
        return self[-1]

    def __setitem__(self, index: Any, value: Any) -> None:
        raise NetError(
            f"parameter {index} cannot be replaced by something else; write into its memory: "
            f"[{index}].data[...] = values"
        )


class Layer:
    """One operation of a net: bottoms in, tops out, parameters of its own in ``blobs``.

    The net calls ``setup`` once, then ``reshape`` whenever a bottom's shape changed, then
    ``forward`` and ``backward``. All four get lists of blobs whose ``data`` and ``diff`` are
    arrays of the module ``self.xp`` (NumPy, or CuPy on a GPU).

    * ``setup`` reads the layer's parameters, refuses wrong ones with ``raise self.error(...)``
      and makes ``self.blobs`` with ``self.add_blob``.
    * ``reshape`` checks the bottoms' shapes and calls ``top[i].reshape(...)``.
    * ``forward`` writes every ``top[i].data`` completely.
    * ``backward`` overwrites ``bottom[i].diff`` where ``propagate_down[i]``, and **adds** to
      ``self.blobs[i].diff`` where ``self.param_propagate_down[i]``.

    A layer of your own derives from this class and either is named by a ``Python`` layer in
    the prototxt or registers a type name with :func:`register`.

    Attributes:
        param: the layer's ``LayerParameter`` message.
        name: its name.
        written_bottoms: what the prototxt calls the bottoms, for messages.
        phase: ``TRAIN`` (0) or ``TEST`` (1).
        blobs: the learnable parameters.
        param_propagate_down: per parameter, whether its gradient is wanted.
        loss_weights: per top, its share in the net's loss (0 for none).
        xp: the array module to compute with.
        rng: this layer's own random numbers, seeded by the net.
        dtype: the NumPy type of all blobs.
        where: ``file:line`` of the layer, for messages.
        dry: whether it is set up for its shapes alone: ``add_blob`` does not fill, and ``setup``
            must not write files.
    """

    bottoms: ClassVar[Bounds] = (0, None)
    tops: ClassVar[Bounds] = (0, None)
    equal_bottoms_and_tops: ClassVar[bool] = False
    in_place: ClassVar[bool] = False
    """Whether top i may be bottom i."""
    is_loss: ClassVar[bool] = False
    """Loss layers get an automatic top and a loss weight of 1 unless the prototxt says else."""
    dynamic: ClassVar[bool] = False
    """Whether ``forward`` may give the tops other shapes (data sources, Python layers)."""
    on_host: ClassVar[bool] = False
    """Whether it computes with NumPy on the host, whatever the engine."""
    settings: ClassVar[tuple[str, ...]] = ()
    """Fields of ``LayerParameter`` with its settings, besides the one named after the type."""

    def __init__(
        self,
        param: caffe_pb2.LayerParameter,
        *,
        phase: int = caffe_pb2.TRAIN,
        xp: Any = np,
        rng: np.random.Generator | None = None,
        dtype: npt.DTypeLike = np.float32,
        where: str = "",
        dry: bool = False,
    ) -> None:
        self.param = param
        self.name: str = param.name
        self.type: str = param.type
        self.written_bottoms: tuple[str, ...] = tuple(param.bottom)
        self.phase = phase
        self.xp = np if self.on_host else xp
        self.rng = rng if rng is not None else np.random.default_rng()
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.where = where
        self.dry = dry
        self.blobs = Parameters(self.dtype)
        self.param_propagate_down: list[bool] = []
        self.loss_weights: list[float] = []

    @classmethod
    def variant(cls, param: caffe_pb2.LayerParameter) -> type[Layer]:
        """Return the class that runs these settings, where one type name means several layers."""
        return cls

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Read and check the parameters; make the learnable blobs."""

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Give the tops their shapes."""
        raise NotImplementedError

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Compute the tops' data."""
        raise NotImplementedError

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        """Compute the wanted bottom diffs and add to the parameters' diffs."""
        if any(propagate_down):
            raise self.error("has no gradient, but a layer below asks for one")

    def multiply_adds(self, bottom: list[Blob], top: list[Blob]) -> int:
        """Return how many products with learned weights a forward pass adds up, shapes known.

        Only layers that multiply matrices or filters count; element-wise work is 0, as in most
        published figures.
        """
        return 0

    def allow_force_backward(self, bottom_index: int) -> bool:
        """Whether ``force_backward`` may ask for this bottom's gradient (not for labels)."""
        return True

    def get_state(self) -> dict[str, Any]:
        """Return what a run that goes on later needs besides the blobs, as JSON values.

        A layer that remembers more than its random numbers from one forward to the next adds
        it here and takes it back in :meth:`set_state`.
        """
        return {"random": self.rng.bit_generator.state}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from where :meth:`get_state` was called."""
        self.rng.bit_generator.state = state["random"]

    def close(self) -> None:
        """Let go of files and threads."""

    def add_blob(
        self, shape: Sequence[int], filler: caffe_pb2.FillerParameter | None = None
    ) -> Blob:
        """Append a learnable blob, filled by ``filler`` (constant 0 without one)."""
        blob = Blob(shape, self.dtype)
        self.fill_blob(blob, filler or caffe_pb2.FillerParameter())
        self.blobs.append(blob)
        return blob

    def fill_blob(self, blob: Blob, filler: caffe_pb2.FillerParameter) -> None:
        """Set the blob's data by a filler; in a dry layer, only check that it can be done."""
        if self.dry:
            check_filler(filler, blob.shape, self.error)
        else:
            fill(blob, filler, self.rng, self.error)

    def error(self, message: str) -> LayerError:
        """Return an error that names this layer and where it stands in the prototxt."""
        place = f"{self.where}: " if self.where else ""
        return LayerError(f"{place}layer '{self.name}' ({self.type}): {message}")

    def canonical_axis(self, axis: int, blob: Blob, what: str = "axis") -> int:
        """Turn an axis that may count from the end into one from the front, or refuse it."""
        n = blob.num_axes
        if not -n <= axis < n:
            raise self.error(
                f"{what} {axis} is out of range for a blob with {n} axes (shape {blob.shape}); "
                f"legal are {-n} to {n - 1}"
            )
        return axis + n if axis < 0 else axis

    def check_counts(self, num_bottoms: int, num_tops: int) -> None:
        """Refuse a wrong number of bottoms or tops."""
        problem = self.wrong_counts(num_bottoms, num_tops)
        if problem:
            raise self.error(problem)

    @classmethod
    def wrong_counts(cls, num_bottoms: int, num_tops: int) -> str:
        """Return what is wrong with the numbers of bottoms and tops, or an empty string."""
        for what, bounds, got in (
            ("bottom", cls.bottoms, num_bottoms),
            ("top", cls.tops, num_tops),
        ):
            least, most = bounds
            if got < least or (most is not None and got > most):
                wanted = str(least) if least == most else f"at least {least}"
                if most is not None and least != most:
                    wanted = f"{least} to {most}"
                return f"expected {wanted} {what} blob(s), got {got}"
        if cls.equal_bottoms_and_tops and num_bottoms != num_tops:
            return (
                f"needs as many tops as bottoms, got {num_bottoms} bottom(s) and {num_tops} top(s)"
            )
        return ""


_registry: dict[str, type[Layer]] = {}
AnyLayer = TypeVar("AnyLayer", bound=type[Layer])


def register(type_name: str) -> Callable[[AnyLayer], AnyLayer]:
    """Class decorator: make the layer available as ``type: "type_name"``.

    A package can bring layers without being imported first through the entry point group
    ``protocaffe.layers`` (entry name = type name, value = the class).
    """

    def decorate(layer_class: AnyLayer) -> AnyLayer:
        _registry[type_name] = layer_class
        return layer_class

    return decorate


def layer_types() -> list[str]:
    """Return the names of all known layer types, sorted."""
    return sorted({*_registry, *(entry.name for entry in entry_points(group=ENTRY_POINTS))})


ENTRY_POINTS = "protocaffe.layers"


def layer_class(type_name: str) -> type[Layer]:
    """Return the class registered for a type name.

    Raises:
        NetError: no layer has that name; the message offers the nearest one.
    """
    if type_name not in _registry:
        for entry in entry_points(group=ENTRY_POINTS, name=type_name):
            _registry[type_name] = entry.load()
    if type_name not in _registry and type_name in FORK_TYPES:
        raise NetError(
            f"layer type '{type_name}' comes from {FORK_TYPES[type_name]} and is not supported "
            f"here; a Python layer of your own can stand in for it"
        )
    if type_name not in _registry:
        if not type_name:
            raise NetError("has no type ('protocaffe layers' lists them)")
        raise NetError(f"unknown layer type '{type_name}'{near_or_all(type_name, layer_types())}")
    return _registry[type_name]


def create_layer(param: caffe_pb2.LayerParameter, where: str = "", **kwargs: Any) -> Layer:
    """Return a new layer for the message; keyword arguments go to :class:`Layer`.

    Raises:
        NetError: the type is unknown; the message names the layer and where it stands.
    """
    try:
        found = layer_class(param.type).variant(param)
    except NetError as error:
        place = f"{where}: " if where else ""
        raise NetError(f"{place}layer '{param.name}': {error}") from None
    return found(param, where=where, **kwargs)
