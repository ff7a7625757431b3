"""Pictures of nets, made by Graphviz: pycaffe's ``caffe.draw``.

A box is a layer, with its settings; layers that work in place are rows below the one whose blob
they change. Arrows are blobs, with their shape per image where it is known.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from protocaffe.errors import NetError, ProtocaffeError, UsageError
from protocaffe.graph import Node
from protocaffe.graph.filter import why_left_out
from protocaffe.layers.base import layer_class
from protocaffe.log import log
from protocaffe.proto.caffe_pb2 import (
    EltwiseParameter,
    LayerParameter,
    NetParameter,
    NetState,
    Phase,
    PoolingParameter,
)
from protocaffe.proto.files import StrPath, write_atomic
from protocaffe.proto.text import Source
from protocaffe.proto.upgrade import upgrade_net
from protocaffe.scaffold import build_scaffold

Shapes = Mapping[str, tuple[int, ...]]

RANKDIRS = ("LR", "RL", "TB", "BT")
"""Where arrows point: left to right, and so on."""
TEXT_FORMATS = ("dot", "gv")
"""Endings of files that get the text that Graphviz reads."""

FAMILIES = {
    "data input memory hdf5 windows": "#d5e8d4",
    "convolution": "#cfe2f7",
    "inner_product embed recurrent": "#dfd3f0",
    "pooling roi resize": "#fbe0c3",
    "activation dropout": "#fff4c2",
    "normalization bn scale": "#cdece8",
    "loss softmax accuracy": "#f8d0ce",
    "detection": "#f3cfe3",
}
"""Colours of layer types, by the modules of ``protocaffe.layers`` that have them."""
COLORS = {module: color for modules, color in FAMILIES.items() for module in modules.split()}
OTHER = "#e9e9e9"
LINE = "#5a6370"
FAINT = "#4b5563"
MAX_SETTINGS = 4
"""How many settings a box shows of a layer type that has no line of its own."""
MAX_TEXT = 24
"""How many characters of a setting, such as a path, it shows."""


class NoGraphvizError(ProtocaffeError):
    """There is no Graphviz to make a picture of the text."""


def draw_net_to_file(
    caffe_net: NetParameter,
    filename: StrPath,
    rankdir: str = "LR",
    phase: int | None = None,
    display_lrm: bool = False,
    source: Source | None = None,
) -> None:
    """Draw a net into a file.

    Args:
        caffe_net: the net, of any format.
        filename: png, svg, pdf or whatever Graphviz writes, as its ending says; ``.dot`` or
            ``.gv`` for the text that Graphviz reads.
        rankdir: where arrows point: LR, RL, TB or BT.
        phase: ``TRAIN`` or ``TEST``; layers of both unless told otherwise.
        display_lrm: whether to show the factors on the learning rate.
        source: where the net was read from. A net with Python layers has shapes in the picture
            only if that is known: to find them out, their code is run.

    Raises:
        UsageError: an unknown direction or format.
        NoGraphvizError: Graphviz is not installed; ``.dot`` and ``.gv`` do not need it.
        ProtocaffeError: Graphviz fails.
        FileError: the file cannot be written.
    """
    content = draw_net(caffe_net, rankdir, extension(filename), phase, display_lrm, source)
    write_atomic(filename, content)


def extension(filename: StrPath) -> str:
    """Return the format that a file's name asks for.

    Raises:
        UsageError: it has no ending.
    """
    ext = os.path.splitext(filename)[1].removeprefix(".").lower()
    if not ext:
        raise UsageError(f"{os.fspath(filename)}: expected an ending such as .png, .svg or .dot")
    return ext


def draw_net(
    caffe_net: NetParameter,
    rankdir: str = "LR",
    ext: str = "png",
    phase: int | None = None,
    display_lrm: bool = False,
    source: Source | None = None,
) -> bytes:
    """Return the content of a picture; see :func:`draw_net_to_file`."""
    text = net_to_dot(caffe_net, rankdir, phase, display_lrm=display_lrm, source=source)
    return text.encode() if ext in TEXT_FORMATS else render(text, ext)


def render(dot: str, ext: str) -> bytes:
    """Have Graphviz make a picture of a text.

    Raises:
        NoGraphvizError: it is not installed.
        UsageError: it does not know the format.
        ProtocaffeError: it fails.
    """
    program = shutil.which("dot")
    if program is None:
        raise NoGraphvizError(
            "Graphviz's program 'dot' is not installed (apt install graphviz, brew install "
            "graphviz or https://graphviz.org/download)"
        )
    done = subprocess.run([program, f"-T{ext}"], input=dot.encode(), capture_output=True)
    if done.returncode == 0 and done.stdout:
        return done.stdout
    said = done.stderr.decode(errors="replace").strip()
    if "not recognized" in said:
        raise UsageError(f"Graphviz cannot write '.{ext}'; try png, svg, pdf or dot")
    raise ProtocaffeError(f"Graphviz failed with exit code {done.returncode}: {said}")


def net_to_dot(
    caffe_net: NetParameter,
    rankdir: str = "LR",
    phase: int | None = None,
    *,
    display_lrm: bool = False,
    source: Source | None = None,
) -> str:
    """Return a net as text in Graphviz's language, DOT; see :func:`draw_net_to_file`.

    Raises:
        UsageError: an unknown direction.
        NetError: there is no layer to draw.
    """
    if rankdir not in RANKDIRS:
        raise UsageError(f"unknown direction '{rankdir}'; expected one of {', '.join(RANKDIRS)}")
    net = NetParameter()
    net.CopyFrom(caffe_net)
    upgrade_net(net, net.name)
    picture = Picture(_layers(net, phase))
    shapes = known_shapes(net, phase, source)
    boxes = [_box(box, display_lrm) for box in picture.boxes]
    arrows = [_arrow(*arrow, shapes) for arrow in picture.arrows]
    ends = [line for end in picture.ends for line in _end(*end, shapes)]
    body = "\n".join(f"  {line}" for line in [*_style(net, rankdir, phase), *boxes, *arrows, *ends])
    return f"digraph {_quoted(net.name or 'net')} {{\n{body}\n}}\n"


def known_shapes(net: NetParameter, phase: int | None, source: Source | None) -> Shapes:
    """Return the shapes of a net's blobs by name; if they cannot be told, log why.

    Args:
        net: of the current format.
        phase: ``TRAIN`` or ``TEST``; both unless told otherwise.
        source: where it was read from; without it, no code of Python layers is run.
    """
    if source is None and any(layer.type == "Python" for layer in net.layer):
        log.warning("The picture has no shapes: they depend on the code of Python layers.")
        return {}
    shapes: dict[str, tuple[int, ...]] = {}
    problem = ""
    for each in (Phase.TRAIN, Phase.TEST) if phase is None else (phase,):
        try:
            scaffold = build_scaffold(net, NetState(phase=Phase.Name(each)), source)
        except ProtocaffeError as error:
            problem = problem or str(error)
            continue
        shapes.update({name: blob.shape for name, blob in scaffold.assembly.blobs.items()})
        scaffold.close()
    if not shapes:
        log.warning("The picture has no shapes: %s", problem)
    return shapes


@dataclass
class Box:
    """A layer and those that work in place on what it writes."""

    number: int
    layers: list[LayerParameter] = field(default_factory=list)

    @property
    def id(self) -> str:
        """Its name in the text."""
        return f"layer{self.number}"

    @property
    def names(self) -> set[str]:
        """The names of its layers."""
        return {layer.name for layer in self.layers}


class Picture:
    """Which layers share a box, and which blobs go from box to box.

    Args:
        layers: the layers that are drawn.

    Attributes:
        boxes: in the order of the net.
        arrows: from, to, and the blob.
        ends: box and blob, for blobs that nobody reads.
    """

    def __init__(self, layers: list[LayerParameter]) -> None:
        self.boxes: list[Box] = []
        self.arrows: list[tuple[Box, Box, str]] = []
        self._writers: dict[str, list[Box]] = defaultdict(list)
        self._unread: dict[str, None] = {}
        for layer in layers:
            self._add(layer)
        self.ends = [(box, name) for name in self._unread for box in self._writers[name]]

    def _add(self, layer: LayerParameter) -> None:
        changed = layer.top[0] if layer.top and layer.top[0] in layer.bottom[:1] else ""
        if changed and len(layer.bottom) == 1 and len(self._writers[changed]) == 1:
            self._writers[changed][0].layers.append(layer)
            return
        box = Box(len(self.boxes), [layer])
        self.boxes.append(box)
        for name in dict.fromkeys(layer.bottom):
            self.arrows += [(writer, box, name) for writer in self._writers[name]]
            self._unread.pop(name, None)
        for name in layer.top:
            if name in layer.bottom or not self._is_alternative(layer, name):
                self._writers[name] = []
            self._writers[name].append(box)
            self._unread[name] = None

    def _is_alternative(self, layer: LayerParameter, name: str) -> bool:
        """Whether a blob has another writer already, of another phase or stage."""
        writers = [each for box in self._writers[name] for each in box.layers[:1]]
        return any(each.include or each.exclude for each in (layer, *writers))


def _layers(net: NetParameter, phase: int | None) -> list[LayerParameter]:
    if phase is None:
        layers = list(net.layer)
    else:
        state = NetState(phase=Phase.Name(phase))
        nodes = [Node(layer, list(layer.bottom), list(layer.top), "") for layer in net.layer]
        layers = [node.param for node in nodes if not why_left_out(node, state)]
    if not layers:
        raise NetError(f"net '{net.name}' has no layers to draw")
    return layers


# -- text --------------------------------------------------------------------------------


def _style(net: NetParameter, rankdir: str, phase: int | None) -> list[str]:
    title = net.name if phase is None else f"{net.name} ({Phase.Name(phase)})"
    font = 'fontname="Helvetica,Arial,sans-serif"'
    return [
        f"rankdir={rankdir}; ranksep=0.35; nodesep=0.3; {font}; fontsize=16;",
        f"labelloc=t; label={_quoted(title)};",
        f"node [shape=plain; {font}; fontsize=11];",
        f'edge [color="{LINE}"; arrowsize=0.7; {font}; fontsize=9; fontcolor="{FAINT}"];',
    ]


def _box(box: Box, display_lrm: bool) -> str:
    rows = "".join(_row(layer, display_lrm) for layer in box.layers)
    table = f'<table border="1" color="{LINE}" cellborder="0" cellspacing="0" cellpadding="5">'
    return f"{box.id} [label=<{table}{rows}</table>>];"


def _row(layer: LayerParameter, display_lrm: bool) -> str:
    details = settings_line(layer)
    if display_lrm:
        details = ", ".join(filter(None, [details, _rates(layer)]))
    lines = f"<b>{escape(layer.name)}</b>  {escape(layer.type)}"
    if details:
        small = f'<font point-size="9" color="{FAINT}">{escape(details)}</font>'
        lines += f'<br/><font point-size="3"> <br/></font>{small}'
    return f'<tr><td bgcolor="{_color(layer.type)}">{lines}</td></tr>'


def _arrow(start: Box, stop: Box, blob: str, shapes: Shapes) -> str:
    name = "" if blob in start.names else blob
    return f"{start.id} -> {stop.id}{_label(name, _shape(shapes.get(blob, ())))};"


def _end(box: Box, blob: str, shapes: Shapes) -> list[str]:
    name = _quoted(f"{box.id} {blob}")
    look = f'shape=box; style=rounded; height=0.25; margin="0.1,0.05"; color="{LINE}"'
    return [
        f"{name} [label={_quoted(blob)}; {look}];",
        f"{box.id} -> {name}{_label(_shape(shapes.get(blob, ())))};",
    ]


def _label(*lines: str) -> str:
    """Return an arrow's label, set off from its line; empty lines are left out."""
    text = "\n".join(f"  {line}  " for line in lines if line)
    return f" [label={_quoted(text)}]" if text else ""


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _shape(shape: tuple[int, ...]) -> str:
    """Return a blob's shape without its first axis, which counts images."""
    return _times(shape[1:])


def _times(extents: tuple[int, ...] | list[int]) -> str:
    return "×".join(map(str, extents))


def _color(type_name: str) -> str:
    try:
        module = layer_class(type_name).__module__
    except NetError:
        return OTHER
    return COLORS.get(module.rpartition(".")[2], OTHER)


# -- settings ----------------------------------------------------------------------------


def settings_line(layer: LayerParameter) -> str:
    """Return what a layer's box says about its settings."""
    if layer.HasField("convolution_param"):
        param = layer.convolution_param
        kernels = f"{param.num_output} × {_kernel(param)}" if param.num_output else _kernel(param)
        group = [f"group {param.group}"] if param.group > 1 else []
        return ", ".join([kernels, *_window(param), *group])
    if layer.type == "Pooling":
        return _pooling(layer.pooling_param)
    if layer.type == "Eltwise":
        return EltwiseParameter.EltwiseOp.Name(layer.eltwise_param.operation)
    if layer.HasField("inner_product_param"):
        return f"{layer.inner_product_param.num_output} outputs"
    return ", ".join(_scalars(layer)[:MAX_SETTINGS])


def _pooling(param: PoolingParameter) -> str:
    method = PoolingParameter.PoolMethod.Name(param.pool)
    if param.global_pooling:
        return f"{method}, global"
    return ", ".join([f"{method} {_kernel(param)}", *_window(param)])


def _kernel(param: Message) -> str:
    return _extents(param, "kernel_size", "kernel") or "?"


def _window(param: Message) -> list[str]:
    """Return stride, pad and dilation where they are not the default."""
    found = []
    for name, default in (("stride", "1"), ("pad", "0"), ("dilation", "1")):
        if name not in param.DESCRIPTOR.fields_by_name:
            continue
        text = _extents(param, name, name, square=False)
        if text and text != default:
            found.append(f"{name} {text}")
    return found


def _extents(param: Message, name: str, stem: str, *, square: bool = True) -> str:
    """Return a setting that is given once, once per axis, or for height and width."""
    fields = param.DESCRIPTOR.fields_by_name
    pair = [f"{stem}_h", f"{stem}_w"]
    if pair[0] in fields and any(param.HasField(each) for each in pair):
        values = [getattr(param, each) for each in pair]
    else:
        given = getattr(param, name)
        values = list(given) if hasattr(given, "extend") else [given]
    if len(values) == 1 and square:
        values = values * 2 if values[0] else []
    return _times(values)


def _scalars(layer: LayerParameter) -> list[str]:
    """Return the settings with one value that are written in a layer's own message."""
    return [
        f"{setting.name} {_value(setting, value)}"
        for own, message in layer.ListFields()
        if own.name.endswith("_param") and own.name != "transform_param"
        for setting, value in message.ListFields()
        if not setting.message_type and not hasattr(value, "extend")
    ]


def _value(setting: FieldDescriptor, value: Any) -> str:
    if setting.enum_type:
        return str(setting.enum_type.values_by_number[value].name)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return text if len(text) <= MAX_TEXT else f"…{text[-MAX_TEXT:]}"


def _rates(layer: LayerParameter) -> str:
    rates = ", ".join(f"{spec.lr_mult:g}" for spec in layer.param)
    return f"lr_mult {rates}" if rates else ""
