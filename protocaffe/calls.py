"""How a net is called from Python: by names of layers and blobs, with arrays, as pycaffe's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from protocaffe.blob import Array, Blob, assign
from protocaffe.engines import LayerNode
from protocaffe.errors import NetError, UnknownNameError, did_you_mean
from protocaffe.graph import Graph
from protocaffe.layers import Layer
from protocaffe.layers.base import Parameters
from protocaffe.layers.memory import MemoryData

Value = TypeVar("Value")

LayerCallback = Callable[[int], None]
"""Called with a layer's place in ``net.layers``."""

MOMENTS = ("before_forward", "after_forward", "before_backward", "after_backward")
"""When a net calls the callbacks it was given."""


MANY = 20
"""Names that an error lists."""


class Named(OrderedDict[str, Value]):
    """A dict by name that says which name was probably meant.

    Args:
        items: names and values.
        missing: how the message about an unknown name begins, "the net has no blob".
    """

    def __init__(
        self,
        items: Mapping[str, Value] | Iterable[tuple[str, Value]] = (),
        missing: str = "there is no",
    ) -> None:
        super().__init__(items)
        self._missing = missing

    def __missing__(self, name: object) -> Value:
        some = ", ".join([*self][:MANY]) + (", ..." if len(self) > MANY else "")
        hint = did_you_mean(str(name), self) or f" (names: {some or 'none'})"
        raise UnknownNameError(f"{self._missing} '{name}'{hint}")

    def __setitem__(self, name: str, value: Value) -> None:
        held = self.get(name)
        if isinstance(held, (Blob, Parameters)):
            place = f"['{name}']" if isinstance(held, Blob) else f"['{name}'][0]"
            raise NetError(
                f"'{name}' cannot be replaced by something else; write into its memory: "
                f"{place}.data[...] = values"
            )
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return dict.__repr__(self)


class NetCalls:
    """The calls of a :class:`protocaffe.Net`, which says what its attributes are."""

    name: str
    graph: Graph
    layers: list[Layer]
    layer_names: list[str]
    blobs: dict[str, Blob]
    blob_loss_weights: dict[str, float]
    inputs: list[str]
    outputs: list[str]
    nodes: list[LayerNode[Layer]]
    _top_names: list[list[str]]
    _callbacks: dict[str, list[LayerCallback]]

    def run_forward(self, first: int = 0, last: int | None = None) -> float:
        """Run layers forward by place; see :meth:`protocaffe.Net.run_forward`."""
        raise NotImplementedError

    def run_backward(self, first: int | None = None, last: int = 0) -> None:
        """Run layers backward by place; see :meth:`protocaffe.Net.run_backward`."""
        raise NotImplementedError

    def run_one_by_one(self) -> None:
        """Never run several layers as one; see :meth:`protocaffe.Net.run_one_by_one`."""
        raise NotImplementedError

    # -- passes --------------------------------------------------------------------------

    def forward(
        self,
        blobs: Sequence[str] | None = None,
        start: str | None = None,
        end: str | None = None,
        **inputs: npt.ArrayLike,
    ) -> dict[str, Array]:
        """Run the net forward, or a part of it.

        Args:
            blobs: names of blobs to return besides the outputs.
            start: name of the first layer to run, None for the net's first.
            end: name of the last layer to run, None for the net's last.
            inputs: values for the net's inputs by name; all of them or none. Their first extent
                must be the blob's.

        Returns:
            The values of the net's outputs (with ``end``, of that layer's tops) and of ``blobs``
            by name. As with ``blob.data`` these are no copies: the next forward changes them.

        Raises:
            NetError: an unknown name, or values that do not fit.
        """
        first, last = self._place(start, 0), self._place(end, len(self.layers) - 1)
        if first > last:
            raise NetError(f"forward runs from start to end, but '{start}' comes after '{end}'")
        names = [*(self.outputs if end is None else self.top_names[end]), *_names(blobs, "blobs")]
        wanted = [self.blobs[name] for name in names]
        if inputs:
            self._check_names(inputs, self.inputs, "inputs")
            for name, values in inputs.items():
                assign(self.blobs[name].data, values, f"input '{name}'")
        if self.graph.param.force_backward:  # who asks for every gradient looks at every layer
            self.run_one_by_one()
        self.run_forward(first, last)
        results = (blob.data for blob in wanted)
        return Named(zip(names, results, strict=True), "forward returned no")

    def backward(
        self,
        diffs: Sequence[str] | None = None,
        start: str | None = None,
        end: str | None = None,
        **output_diffs: npt.ArrayLike,
    ) -> dict[str, Array]:
        """Run the net backward, or a part of it; the gradients of parameters add up.

        Args:
            diffs: names of blobs whose diffs to return besides those of the net's inputs.
            start: name of the first layer to run backward, None for the net's last.
            end: name of the last layer to run backward, None for the net's first.
            output_diffs: values for the diffs of the net's outputs by name; all or none.

        Returns:
            The diffs of the net's inputs (with ``end``, of that layer's bottoms) and of ``diffs``
            by name; no copies.

        Raises:
            NetError: an unknown name, values that do not fit, or no layer has a backward pass.
        """
        first, last = self._place(start, len(self.layers) - 1), self._place(end, 0)
        if first < last:
            raise NetError(f"backward runs from start to end, but '{start}' comes before '{end}'")
        names = [
            *(self.inputs if end is None else self.bottom_names[end]),
            *_names(diffs, "diffs"),
        ]
        wanted = [self.blobs[name] for name in names]
        if not any(node.needs_backward for node in self.nodes):
            raise NetError(
                f"{self._title} has nothing to run backward: nothing in it leads to a loss; "
                f"write force_backward: true into the net to have every gradient computed"
            )
        if output_diffs:
            self._check_names(output_diffs, self.outputs, "outputs")
            for name, values in output_diffs.items():
                assign(self.blobs[name].diff, values, f"diff of output '{name}'")
        self.run_backward(first, last)
        results = (blob.diff for blob in wanted)
        return Named(zip(names, results, strict=True), "backward returned no")

    def forward_all(
        self, blobs: Sequence[str] | None = None, **inputs: npt.ArrayLike
    ) -> dict[str, Array]:
        """Run forward over any number of examples, batch by batch.

        Args:
            blobs: names of blobs to return besides the outputs.
            inputs: for every input of the net, an array (n, ...) of examples; the last batch is
                filled up with zeros.

        Returns:
            Copies of the outputs and of ``blobs`` by name, (n, ...); for a blob without one row
            per example, its value for every batch.

        Raises:
            NetError: an unknown name, or values that do not fit.
        """
        results = [
            self._copies(self.forward(blobs, None, None, **batch))
            for batch in self._batches(inputs)
        ]
        return self._joined(results, _rows(inputs))

    def forward_backward_all(
        self,
        blobs: Sequence[str] | None = None,
        diffs: Sequence[str] | None = None,
        **values: npt.ArrayLike,
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Run forward and backward over any number of examples, batch by batch.

        Args:
            blobs: names of blobs to return besides the outputs.
            diffs: names of blobs whose diffs to return besides those of the inputs.
            values: for every input of the net, an array (n, ...) of examples, and perhaps, for
                every output, one of its diffs.

        Returns:
            Values and diffs by name; see :meth:`forward_all`.

        Raises:
            NetError: an unknown name, or values that do not fit.
        """
        self._check_names(
            (name for name in values if name not in self.outputs), self.inputs, "inputs"
        )
        given = [{k: v for k, v in values.items() if k in names} for names in self._ends]
        forwards, backwards = [], []
        for inputs, gradients in zip_longest(*map(self._batches, given), fillvalue={}):
            forwards.append(self._copies(self.forward(blobs, None, None, **inputs)))
            backwards.append(self._copies(self.backward(diffs, None, None, **gradients)))
        count = _rows(values)
        return self._joined(forwards, count), self._joined(backwards, count)

    def set_input_arrays(self, data: npt.ArrayLike, labels: npt.ArrayLike) -> None:
        """Give the first layer, a MemoryData layer, the examples that forward goes through.

        Args:
            data: (n, channels, height, width), n being a multiple of the batch size.
            labels: n numbers, in any shape.

        Raises:
            NetError: the net begins with another layer, or the shapes do not fit.
        """
        first = self.layers[0]
        if not isinstance(first, MemoryData):
            raise NetError(
                f"set_input_arrays needs a net whose first layer is of type MemoryData; that of "
                f"{self._title} is '{first.name}' ({first.type}). Give forward the values of "
                f"Input layers: net.forward({', '.join(f'{i}=...' for i in self.inputs)})"
            )
        first.reset(data, labels)

    # -- callbacks -----------------------------------------------------------------------

    def before_forward(self, callback: LayerCallback) -> None:
        """Have a function called with a layer's place before each layer runs forward."""
        self._callbacks["before_forward"].append(callback)

    def after_forward(self, callback: LayerCallback) -> None:
        """Have a function called with a layer's place after each layer ran forward."""
        self._callbacks["after_forward"].append(callback)

    def before_backward(self, callback: LayerCallback) -> None:
        """Have a function called with a layer's place before each layer runs backward."""
        self._callbacks["before_backward"].append(callback)

    def after_backward(self, callback: LayerCallback) -> None:
        """Have a function called with a layer's place after each layer ran backward."""
        self._callbacks["after_backward"].append(callback)

    # -- names ---------------------------------------------------------------------------

    @property
    def layer_dict(self) -> dict[str, Layer]:
        """The layers by name."""
        return Named(zip(self.layer_names, self.layers, strict=True), self._has_no("layer"))

    @property
    def top_names(self) -> dict[str, list[str]]:
        """Per layer name, the names of its tops."""
        return Named(zip(self.layer_names, self._top_names, strict=True), self._has_no("layer"))

    @property
    def bottom_names(self) -> dict[str, list[str]]:
        """Per layer name, the names of its bottoms."""
        bottoms = (list(node.bottoms) for node in self.graph.nodes)
        return Named(zip(self.layer_names, bottoms, strict=True), self._has_no("layer"))

    # Names that begin with an underscore and that scripts for pycaffe use nevertheless.

    @property
    def _layer_names(self) -> list[str]:
        return self.layer_names

    @property
    def _blob_names(self) -> list[str]:
        return list(self.blobs)

    @property
    def _blobs(self) -> list[Blob]:
        return list(self.blobs.values())

    @property
    def _blob_loss_weights(self) -> list[float]:
        return list(self.blob_loss_weights.values())

    @property
    def _inputs(self) -> list[int]:
        return self._ids(self.inputs)

    @property
    def _outputs(self) -> list[int]:
        return self._ids(self.outputs)

    def _top_ids(self, layer: int) -> list[int]:
        return self._ids(self._top_names[layer])

    def _bottom_ids(self, layer: int) -> list[int]:
        return self._ids(self.graph.nodes[layer].bottoms)

    def _set_input_arrays(self, data: npt.ArrayLike, labels: npt.ArrayLike) -> None:
        self.set_input_arrays(data, labels)

    def _forward(self, first: int, last: int) -> float:
        return self.run_forward(first, last)

    def _backward(self, first: int, last: int) -> None:
        self.run_backward(first, last)

    # -- arguments and results -----------------------------------------------------------

    @property
    def _title(self) -> str:
        return f"net '{self.name}'" if self.name else "the net"

    def _has_no(self, what: str) -> str:
        return f"{self._title} has no {what}"

    def _ids(self, names: Iterable[str]) -> list[int]:
        places = {name: place for place, name in enumerate(self.blobs)}
        return [places[name] for name in names]

    def _place(self, layer: str | None, default: int) -> int:
        if layer is None:
            return default
        if layer not in self.layer_names:
            raise UnknownNameError(
                f"{self._has_no('layer')} '{layer}'{did_you_mean(str(layer), self.layer_names)}"
            )
        return self.layer_names.index(layer)

    def _check_names(self, given: Iterable[str], known: Sequence[str], what: str) -> None:
        if set(given := list(given)) != set(known):
            raise NetError(
                f"{self._title} has the {what} {', '.join(known) or '(none)'}; "
                f"values came for {', '.join(given) or '(none)'}"
            )

    @property
    def _ends(self) -> tuple[list[str], list[str]]:
        return self.inputs, self.outputs

    def _batches(self, values: Mapping[str, npt.ArrayLike]) -> Iterator[dict[str, Array]]:
        """Cut examples into batches of the net's size, the last one filled up with zeros."""
        arrays = {name: np.asarray(value) for name, value in values.items()}
        for start in range(0, _rows(values), self._batch_size):
            batch = {}
            for name, array in arrays.items():
                rows = array[start : start + self._batch_size]
                missing = self._batch_size - len(rows)
                batch[name] = np.pad(rows, [(0, missing), *[(0, 0)] * (rows.ndim - 1)])
            yield batch

    @property
    def _batch_size(self) -> int:
        if not self.inputs:
            raise NetError(f"{self._title} has no inputs; its data come from a layer")
        return self.blobs[self.inputs[0]].shape[0]

    @staticmethod
    def _copies(arrays: Mapping[str, Array]) -> dict[str, Array]:
        return {name: np.atleast_1d(array).copy() for name, array in arrays.items()}

    def _joined(self, results: Sequence[Mapping[str, Array]], count: int) -> dict[str, Array]:
        """Put the batches' results together, without those of the zeros at the end."""
        joined: dict[str, Array] = Named((), "the pass returned no")
        for name in results[0]:
            whole = np.concatenate([result[name] for result in results])
            per_example = len(whole) == len(results) * self._batch_size
            joined[name] = whole[:count] if per_example else whole
        return joined


def _names(given: Sequence[str] | None, what: str) -> Sequence[str]:
    """Return the names of blobs that were given as a list."""
    if given is None:
        return ()
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise NetError(f"{what} takes a list of names, such as {what}=['ip1']; got {given!r}")
    return given


def _rows(values: Mapping[str, npt.ArrayLike]) -> int:
    """Return how many examples all the arrays have."""
    counts = {name: len(np.atleast_1d(np.asarray(value))) for name, value in values.items()}
    if len(set(counts.values())) != 1 or not min(counts.values()):
        given = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise NetError(
            f"every input needs the same number of examples, at least one; "
            f"{given or 'none was given'}"
        )
    return next(iter(counts.values()))
