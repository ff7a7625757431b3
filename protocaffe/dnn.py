"""Caffe nets for scripts written for ``cv2.dnn``, whose importer for them OpenCV 5 dropped.

::

    from protocaffe import dnn

    net = dnn.readNetFromCaffe("deploy.prototxt", "net.caffemodel")
    net.setInput(dnn.blobFromImage(image, 1.0, (227, 227), (104, 117, 123)))
    scores = net.forward()

What is not defined here (``blobFromImage``, ``imagesFromBlob``, ``NMSBoxes``, constants and all
else) is ``cv2.dnn``'s own. docs/from-opencv.md says what differs.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from protocaffe.blob import Blob
from protocaffe.errors import NetError, ProtocaffeError, UsageError, WeightsError, did_you_mean
from protocaffe.net import Net as CaffeNet
from protocaffe.proto.caffe_pb2 import NetParameter
from protocaffe.proto.files import StrPath
from protocaffe.proto.stored import stored_layers
from protocaffe.proto.text import parse_text
from protocaffe.weights import match_layers

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Content = bytes | bytearray | memoryview | Array
"""A file's content instead of its path: bytes, or an array of uint8."""
PATH = (str, os.PathLike)

NAMELESS = ("Input", "Split")
"""Layer types that OpenCV does not list: they compute nothing."""
NAMED_BY_TOP = "Convolution"
"""The layer type that OpenCV names by its top."""
SCALAR = 4
"""How many numbers a cv::Scalar has, of which images need the first ones."""


class Top(NamedTuple):
    """A layer's place in the net, and which of its tops."""

    layer: int
    place: int = 0


class Layer(NamedTuple):
    """What :meth:`Net.getLayer` tells of a layer.

    Attributes:
        name: its name, ``_input`` for layer 0, which stands for the net's inputs.
        type: its type, empty for layer 0.
        blobs: its parameters, arrays in Caffe's shapes; writing into them changes the net.
        outputs: the names of its tops.
    """

    name: str
    type: str
    blobs: tuple[Array, ...]
    outputs: tuple[str, ...]

    def outputNameToIndex(self, outputName: str) -> int:
        """Return which of the layer's tops has the name, -1 if none: is there such an input?"""
        return self.outputs.index(outputName) if outputName in self.outputs else -1


def __getattr__(name: str) -> Any:
    """Return what ``cv2.dnn`` calls so."""
    import cv2

    if not hasattr(cv2.dnn, name):
        raise AttributeError(f"neither protocaffe.dnn nor cv2.dnn has '{name}'")
    return getattr(cv2.dnn, name)


def readNetFromCaffe(
    prototxt: StrPath | Content, caffeModel: StrPath | Content | None = None
) -> Net:
    """Read a net for inference (phase TEST).

    Args:
        prototxt: path of the deploy prototxt, or its content as bytes.
        caffeModel: path of the weights (``.caffemodel``, also ``.caffemodel.h5``), or the content
            of a ``.caffemodel``; without it, parameters are what the fillers make.

    Raises:
        ProtocaffeError: a file is missing, damaged or does not fit the other.
    """
    if isinstance(prototxt, PATH):
        net = CaffeNet(Path(prototxt))
    else:
        text = bytes(prototxt).decode("utf-8", "replace")
        net = CaffeNet(parse_text(text, NetParameter(), "prototxt"))
    if isinstance(caffeModel, PATH):
        if str(caffeModel):
            _load(net, caffeModel)
    elif caffeModel is not None:
        _load_content(net, bytes(caffeModel))
    return Net(net)


def readNet(model: StrPath, config: StrPath = "", framework: str = "") -> Any:
    """Read a net of any format: a Caffe net with protocaffe, anything else with ``cv2.dnn``.

    Args:
        model: path of a file; for a Caffe net, of weights or prototxt.
        config: path of the other file, in either order.
        framework: ``caffe`` if the names of the files do not end in ``.caffemodel`` or
            ``.prototxt``.

    Raises:
        ProtocaffeError: a Caffe net cannot be read.
    """
    paths = [str(path) for path in (model, config) if str(path)]
    weights = [path for path in paths if path.endswith((".caffemodel", ".caffemodel.h5"))]
    text = [path for path in paths if path.endswith(".prototxt")]
    if framework.lower() == "caffe" and not (weights or text):
        weights, text = paths[:1], paths[1:]
    if not (weights or text):
        return __getattr__("readNet")(*map(str, (model, config)), framework)
    if not text:
        raise UsageError(f"{weights[0]}: a Caffe net needs its prototxt, too")
    return readNetFromCaffe(text[0], weights[0] if weights else None)


def _load(net: CaffeNet, path: StrPath) -> None:
    """Load weights, which must be there for every layer that has parameters."""
    net.copy_from(Path(path))
    with stored_layers(path) as layers:
        missing = match_layers(layers, net.params).fresh
    if missing:
        raise WeightsError(f"{path}: has no weights for the layer(s) {', '.join(missing)}")


def _load_content(net: CaffeNet, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.caffemodel"
        path.write_bytes(content)
        try:
            _load(net, path)
        except ProtocaffeError as error:
            raise type(error)(str(error).replace(str(path), "caffeModel")) from None


class Net:
    """A Caffe net with the methods of ``cv2.dnn.Net``.

    Layers are known by name; where no layer has that name, a blob may. Results are copies, float32.

    Args:
        net: the net that computes.

    Attributes:
        net: see above; for what ``cv2.dnn.Net`` has no method for.
    """

    def __init__(self, net: CaffeNet) -> None:
        self.net = net
        self._unset = list(net.inputs)
        self._ticks: list[int] = []
        self._places = [i for i, layer in enumerate(net.layers) if layer.type not in NAMELESS]
        self._names = [self._name(place) for place in self._places]

    # -- running -------------------------------------------------------------------------

    def setInput(
        self,
        blob: npt.ArrayLike,
        name: str = "",
        scalefactor: float = 1.0,
        mean: float | Sequence[float] = (),
    ) -> None:
        """Set an input to (blob - mean) · scalefactor; the net takes its shape.

        Args:
            blob: values with as many axes as the net's input has; any shape, such as another
                batch size.
            name: the input's blob; the first input unless told otherwise.
            scalefactor: see above.
            mean: one value, or one per channel.

        Raises:
            UsageError: the net has no such input, or the values do not fit.
        """
        name = name or next(iter(self.net.inputs), "")
        if name not in self.net.inputs:
            raise UsageError(
                f"the net has no input '{name}'{did_you_mean(name, self.net.inputs)} "
                f"(it has: {', '.join(self.net.inputs) or 'none'})"
            )
        target, values = self.net.blobs[name], np.asarray(blob, np.float32)
        if values.ndim != target.num_axes or 0 in values.shape:
            raise UsageError(
                f"input '{name}' needs {target.num_axes} axes, like {target.shape}; got shape "
                f"{values.shape}" + (" (one image is blob[None])" if values.ndim == 3 else "")
            )
        values = _scaled(values, scalefactor, mean)
        target.reshape(values.shape)
        target.data[...] = values
        if name in self._unset:
            self._unset.remove(name)

    def forward(self, outputName: str | Sequence[str] = "") -> Floats | tuple[Floats, ...]:
        """Run the net and return the first top of layers.

        Args:
            outputName: a layer's name; the last layer unless told otherwise. For a sequence of
                names, a tuple comes back. Layers behind those named do not run.

        Raises:
            UsageError: an unknown name.
            NetError: an input was not set, or has a shape that the net cannot take.
        """
        if isinstance(outputName, str):
            top = self._find(outputName) if outputName else Top(self._places[-1])
            return self._run([top])[top]
        tops = [self._find(name) for name in outputName] or [Top(self._places[-1])]
        results = self._run(tops)
        return tuple(results[top] for top in tops)

    def getPerfProfile(self) -> tuple[int, Array]:
        """Return the time of the last forward, and of each layer, in ticks.

        Divide by ``cv2.getTickFrequency()`` for seconds. Layers that run as part of another have
        0.
        """
        places = self._places if self._ticks else []
        return sum(self._ticks), np.array([self._ticks[place] for place in places], np.float64)

    # -- structure -----------------------------------------------------------------------

    def getLayerNames(self) -> tuple[str, ...]:
        """Return the layers' names in order, without inputs.

        As in OpenCV, a Convolution has the name of its top.
        """
        return tuple(self._names)

    def getLayerId(self, layer: str) -> int:
        """Return a layer's place in ``getLayerNames``, counted from 1; -1 if it is unknown."""
        return self._names.index(layer) + 1 if layer in self._names else -1

    def getLayer(self, layerId: int | str) -> Layer:
        """Return what a layer is.

        Args:
            layerId: its number, as of :meth:`getLayerId` (0 for the inputs), or its name.

        Raises:
            UsageError: there is no such layer.
        """
        if isinstance(layerId, str):
            place = self._find(layerId).layer
        elif layerId == 0:
            return Layer("_input", "", (), tuple(self.net.inputs))
        elif 0 < layerId <= len(self._places):
            place = self._places[layerId - 1]
        else:
            raise UsageError(f"the net has no layer {layerId}; expected 0 to {len(self._places)}")
        layer, node = self.net.layers[place], self.net.graph.nodes[place]
        blobs = tuple(blob.data for blob in layer.blobs)
        return Layer(self._name(place), layer.type, blobs, tuple(node.tops))

    def getUnconnectedOutLayers(self) -> npt.NDArray[np.int32]:
        """Return the numbers of the layers whose tops nobody reads."""
        return np.array([self.getLayerId(n) for n in self.getUnconnectedOutLayersNames()], np.int32)

    def getUnconnectedOutLayersNames(self) -> tuple[str, ...]:
        """Return the names of the layers whose tops nobody reads, in order."""
        nodes = self.net.graph.nodes
        writers = {top: place for place, node in enumerate(nodes) for top in node.tops}
        ends = {writers[name] for name in self.net.outputs}
        pairs = zip(self._places, self._names, strict=True)
        return tuple(name for place, name in pairs if place in ends)

    def empty(self) -> bool:
        """Return whether there are no layers."""
        return not self._names

    # -- what OpenCV can be told -----------------------------------------------------------

    def setPreferableBackend(self, backendId: int) -> None:
        """Do nothing: protocaffe computes with its own engine."""

    def setPreferableTarget(self, targetId: int) -> None:
        """Do nothing: the engine runs on the CPU."""

    def enableFusion(self, fusion: bool) -> None:
        """Do nothing: layers are fused where nobody can see it."""

    def enableWinograd(self, useWinograd: bool) -> None:
        """Do nothing: the engine chooses how to compute."""

    # -- inside --------------------------------------------------------------------------

    def _name(self, place: int) -> str:
        node = self.net.graph.nodes[place]
        if node.param.type == NAMED_BY_TOP and node.tops:
            return node.tops[0]
        return node.name

    def _find(self, name: str) -> Top:
        """Return what a name stands for: a layer here, a layer in the prototxt, or a blob."""
        if name in self._names:
            return Top(self._places[self._names.index(name)])
        nodes = self.net.graph.nodes
        for place in self._places:
            if nodes[place].name == name:
                return Top(place)
        for place in reversed(self._places):
            if name in nodes[place].tops:
                return Top(place, nodes[place].tops.index(name))
        raise UsageError(
            f"the net has no layer '{name}'{did_you_mean(name, self._names)} "
            f"(it has: {', '.join(self._names)})"
        )

    def _run(self, wanted: Sequence[Top]) -> dict[Top, Floats]:
        """Run as far as needed and return copies of the tops."""
        import cv2

        self._check(wanted)
        last = max(top.layer for top in wanted)
        passing = [top for top in wanted if self._is_overwritten(top, last)]
        if passing or last + 1 < len(self.net.layers):
            self.net.run_one_by_one()
        results = {}
        self._ticks = [0] * len(self.net.layers)
        with self.net.serving_holders():
            for place in range(last + 1):
                start = cv2.getTickCount()
                self.net.forward_layer(place)
                self._ticks[place] = cv2.getTickCount() - start
                for top in passing:
                    if top.layer == place:
                        results[top] = self._copy(top)
        return {top: self._copy(top) for top in wanted} | results

    def _check(self, wanted: Sequence[Top]) -> None:
        if self._unset:
            raise NetError(
                f"input '{self._unset[0]}' was never set; call net.setInput(blob, "
                f"'{self._unset[0]}') before forward"
            )
        for layer, place in wanted:
            if place >= len(self.net.tops[layer]):
                raise UsageError(f"layer '{self.net.layer_names[layer]}' has no output")

    def _is_overwritten(self, top: Top, last: int) -> bool:
        """Whether a later layer, up to the last one to run, works in place on a top."""
        storage = self._blob(top).data_storage
        return any(
            blob.data_storage is storage and blob in self.net.bottoms[layer]
            for layer in range(top.layer + 1, last + 1)
            for blob in self.net.tops[layer]
        )

    def _copy(self, top: Top) -> Floats:
        return np.array(self._blob(top).data)

    def _blob(self, top: Top) -> Blob:
        return self.net.tops[top.layer][top.place]


def _scaled(values: Floats, factor: float, mean: float | Sequence[float]) -> Floats:
    """Return (values - mean) · factor, the mean given once or per channel."""
    offset = np.array(mean, np.float32).ravel()
    if offset.size == 0:
        return np.asarray(values * np.float32(factor))
    channels = values.shape[1] if values.ndim > 1 else 1
    offset = offset[:channels] if offset.size == SCALAR else offset
    if offset.size not in (1, channels):
        raise UsageError(
            f"the mean needs one value or one per channel, {channels}; got {offset.size}"
        )
    offset = offset.reshape(-1, *[1] * (values.ndim - 2))
    return np.asarray((values - offset) * np.float32(factor))
