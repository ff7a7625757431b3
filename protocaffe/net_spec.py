"""Nets written in Python, as in pycaffe, and as blocks that one uses again and again.

::

    from protocaffe.net_spec import NetSpec, layers as L, params as P

    n = NetSpec("tiny")
    n.data, n.label = L.DummyData(shape=[dict(dim=[8, 3, 32, 32]), dict(dim=[8])], ntop=2)
    n.conv1 = L.Convolution(n.data, num_output=16, kernel_size=3, weight_filler=dict(type="msra"))
    n.relu1 = L.ReLU(n.conv1, in_place=True)
    n.pool1 = L.Pooling(n.relu1, pool=P.Pooling.AVE, global_pooling=True)
    n.loss = L.SoftmaxWithLoss(n.pool1, n.label)
    net = Net(n.to_proto())

A layer is checked where it is written: an unknown type or parameter, a value of the wrong kind or
too few bottoms raise there, with the nearest name. What is left for the net to check are shapes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
from google.protobuf.message import Message

from protocaffe.errors import LayerError, NetError, did_you_mean
from protocaffe.layers.base import Layer, layer_class, layer_types
from protocaffe.layers.fillers import check_type
from protocaffe.proto import caffe_pb2
from protocaffe.proto.complaints import EXPECTED
from protocaffe.proto.text import format_compact

MOST_PLACES = 4
"""For how many places a message offers for a parameter that is nested deeper."""

LONGEST_VALUE = 60
"""How much of a wrong value a message shows."""


class UnknownNameError(NetError, AttributeError):
    """A name that ``L``, ``P`` or a net does not have; also an AttributeError, for ``hasattr``."""


class Top:
    """A blob that a layer makes: what other layers take as a bottom.

    Attributes:
        fn: the layer.
        n: which of its tops this is, from 0.
    """

    def __init__(self, fn: Function, n: int) -> None:
        self.fn = fn
        self.n = n

    def __repr__(self) -> str:
        return f"<top {self.n} of L.{self.fn.type_name}>"

    def to_proto(self) -> caffe_pb2.NetParameter:
        """Return the net that ends here."""
        return to_proto(self)


class Function:
    """A layer with its bottoms and settings, not yet named.

    Args:
        type_name: the layer type.
        inputs: its bottoms.
        params: its settings; ``ntop`` (1) and ``in_place`` (False) are taken from them.

    Attributes:
        type_name: the layer type.
        inputs: its bottoms.
        params: its settings.
        ntop: how many tops it has.
        in_place: whether its tops are its bottoms.
        tops: what it makes.

    Raises:
        UnknownNameError: there is no such layer type.
        LayerError: a setting is unknown or has a wrong value, a bottom is no ``Top``, or the type
            takes another number of bottoms or tops.
    """

    def __init__(self, type_name: str, inputs: Sequence[Top], params: Mapping[str, object]) -> None:
        _kind(type_name)
        self.type_name = type_name
        self.inputs = tuple(inputs)
        self.params = dict(params)
        self.ntop = self._take_ntop()
        self.in_place = bool(self.params.pop("in_place", False))
        self._check_inputs()
        self._layer = caffe_pb2.LayerParameter(type=type_name)
        for name, value in self.params.items():
            _set(self._layer, name, value, f"L.{type_name}")
        self._check_counts()
        self.tops = tuple(Top(self, n) for n in range(self.ntop))

    def to_layer(
        self, name: str, bottoms: Sequence[str], tops: Sequence[str]
    ) -> caffe_pb2.LayerParameter:
        """Return the layer's message; a name, bottoms and tops among its settings stay."""
        layer = caffe_pb2.LayerParameter(name=name, bottom=bottoms, top=tops)
        layer.MergeFrom(self._layer)
        return layer

    def _take_ntop(self) -> int:
        ntop = self.params.pop("ntop", 1)
        if not isinstance(ntop, int) or ntop < 0:
            raise self._error(f"ntop is the number of tops, 0 or more, not {ntop!r}")
        return ntop

    def _check_inputs(self) -> None:
        for index, each in enumerate(self.inputs):
            if isinstance(each, Top):
                continue
            hint = "pass what L.Type(...) returned"
            if isinstance(each, str):
                hint = f"for a blob of that name, write n[{each!r}]"
            elif isinstance(each, tuple):
                hint = "a layer with ntop=2 returns two tops: n.data, n.label = L.Data(..., ntop=2)"
            raise self._error(f"input {index} is not a top but {_shown(each)}; {hint}")

    def _check_counts(self) -> None:
        kind = _kind(self.type_name).variant(self._layer)
        if self.in_place and not kind.in_place:
            raise self._error("this layer type cannot work in place")
        if self.type_name == "Python":
            return  # how many it takes, the user's class knows, which is not imported for this
        bottoms = len(self.inputs) + len(self._layer.bottom)
        made = len(self.inputs) if self.in_place else self.ntop
        tops = made + len(self._layer.top)
        least = kind.tops[0] if kind.is_loss else 0  # loss layers get a top by themselves
        problem = kind.wrong_counts(bottoms, max(tops, least))
        if problem:
            raise self._error(problem)

    def _error(self, message: str) -> LayerError:
        return LayerError(f"L.{self.type_name}: {message}")


class NetSpec:
    """A net under construction: assigning a top to an attribute or an item names it.

    ``n.conv1 = L.Convolution(...)`` names layer and top "conv1"; ``n["conv1/dw"] = ...`` is for
    names that Python cannot spell. A layer has the name of its first top unless it is given one
    (``name="..."``); layers and tops that get no name are numbered by type, as in Caffe:
    Convolution1, ReLU1. Layers stand in the order of assignment, each behind those it needs.

    Args:
        name: the net's name.

    Attributes:
        tops: every named top, or layer without tops, in the order of assignment.
    """

    tops: dict[str, Top | Function]

    def __init__(self, name: str = "") -> None:
        self._set_up(name, {}, "")

    def scope(self, prefix: str) -> NetSpec:
        """Return the same net with ``prefix`` before every name that is given or looked up.

        This is what makes blocks: functions that take a scope and tops and return tops. With
        ``fire(n.scope("fire2/"), x)``, what ``fire`` names "squeeze1x1" is "fire2/squeeze1x1".
        """
        scoped = NetSpec.__new__(NetSpec)
        scoped._set_up(self._name, self.tops, self._prefix + prefix)
        return scoped

    def to_proto(self) -> caffe_pb2.NetParameter:
        """Return the net: everything that was named, and what it needs."""
        names = {top: name for name, top in self.tops.items()}
        return _net(self._name, self.tops.values(), names)

    def to_prototxt(self) -> str:
        """Return the net as prototxt."""
        return format_compact(self.to_proto())

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(NetSpec, name) or name in vars(self):
            raise NetError(f"n.{name} is NetSpec's own; write n[{name!r}] = ... instead")
        self[name] = value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if not isinstance(value, (Top, Function)):
            hint = " (a layer with several tops: n.a, n.b = L.Type(..., ntop=2))"
            raise NetError(
                f"n[{name!r}]: expected what L.Type(...) returns, got {_shown(value)}"
                f"{hint if isinstance(value, tuple) else ''}"
            )
        self.tops[self._prefix + name] = value

    def __getitem__(self, name: str) -> Any:
        full = self._prefix + name
        if full not in self.tops:
            raise UnknownNameError(f"no top is named '{full}' yet{did_you_mean(full, self.tops)}")
        return self.tops[full]

    def __delitem__(self, name: str) -> None:
        del self.tops[self._prefix + name]

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self.tops

    def __iter__(self) -> Iterator[str]:
        return iter(self.tops)

    def _set_up(self, name: str, tops: dict[str, Top | Function], prefix: str) -> None:
        """Set what is no top, which plain assignment would make it."""
        vars(self).update(_name=name, tops=tops, _prefix=prefix)


class Layers:
    """``L``: ``L.Convolution(bottom, num_output=16, kernel_size=3)`` makes a layer.

    A parameter is a field of the type's own message, such as ConvolutionParameter, or of
    LayerParameter (``param``, ``loss_weight``, ``include``, ``transform_param``, ``name`` ...).
    Messages are given as dicts, repeated fields as lists or as their only element, enums by name
    or as ``P.Pooling.MAX``; None leaves a parameter out. ``ntop`` is the number of tops, 1 if
    nothing else is said; ``in_place=True`` makes the bottom the top. The call returns the top, a
    tuple of several tops, or the :class:`Function` itself if there are none.
    """

    def __getattr__(self, type_name: str) -> Any:
        if type_name.startswith("_"):
            raise AttributeError(type_name)

        def make(*inputs: Top, **params: object) -> Any:
            fn = Function(type_name, inputs, params)
            if fn.ntop == 0:
                return fn
            return fn.tops[0] if fn.ntop == 1 else fn.tops

        make.__name__ = make.__qualname__ = type_name
        make.__doc__ = _kind(type_name).__doc__
        return make

    def __dir__(self) -> list[str]:
        return layer_types()


class Parameters:
    """``P``: ``P.Pooling.MAX`` is the value MAX of an enum in PoolingParameter."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        known = dir(self)
        if name not in known:
            raise UnknownNameError(f"P.{name}: unknown message{did_you_mean(name, known)}")
        return Values(getattr(caffe_pb2, f"{name}Parameter"))

    def __dir__(self) -> list[str]:
        messages = caffe_pb2.DESCRIPTOR.message_types_by_name
        return [
            name.removesuffix("Parameter")
            for name, message in messages.items()
            if name.endswith("Parameter") and message.enum_values_by_name
        ]


class Values:
    """The enum values of one message, for :class:`Parameters`."""

    def __init__(self, message: type[Message]) -> None:
        self._message = message

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        known = dir(self)
        if name not in known:
            place = self._message.DESCRIPTOR.name.removesuffix("Parameter")
            raise UnknownNameError(
                f"P.{place}.{name}: unknown value{did_you_mean(name, known)} "
                f"(known: {', '.join(known)})"
            )
        return getattr(self._message, name)

    def __dir__(self) -> list[str]:
        return list(self._message.DESCRIPTOR.enum_values_by_name)


layers = Layers()
params = Parameters()


def to_proto(*tops: Top | Function) -> caffe_pb2.NetParameter:
    """Return the net that leads to the tops; everything in it is named automatically."""
    return _net("", tops, {})


def assign_proto(proto: Message, name: str, val: object) -> None:
    """Set a field of a message as layers' parameters are set: from dicts, lists and names.

    Raises:
        LayerError: there is no such field, or the value is of the wrong kind.
    """
    _assign(proto, name, val, proto.DESCRIPTOR.name)


def param_name_dict() -> dict[str, str]:
    """Return, by layer type, the field that holds its settings, without ``_param``.

    ``{"Convolution": "convolution", "ReLU": "relu", ...}``
    """
    return {
        field.message_type.name.removesuffix("Parameter"): field.name.removesuffix("_param")
        for field in caffe_pb2.LayerParameter.DESCRIPTOR.fields
        if field.message_type and field.message_type.name.endswith("Parameter")
    }


Names = dict[Top | Function, str]


def _net(name: str, ends: Iterable[Top | Function], names: Names) -> caffe_pb2.NetParameter:
    """Return the net that leads to the ends; ``names`` gets the automatic names, too."""
    net = caffe_pb2.NetParameter(name=name) if name else caffe_pb2.NetParameter()
    numbers: Counter[str] = Counter()
    blobs: dict[Function, Sequence[str]] = {}
    for fn in _ordered(ends):
        bottoms = [blobs[each.fn][each.n] for each in fn.inputs]
        named = (fn.tops[:1] if fn.in_place else fn.tops) or (fn,)
        for each in named:
            if each not in names:
                numbers[fn.type_name] += 1
                names[each] = f"{fn.type_name}{numbers[fn.type_name]}"
        tops = bottoms if fn.in_place else [names[top] for top in fn.tops]
        layer = fn.to_layer(names[named[0]], bottoms, tops)
        blobs[fn] = layer.top
        net.layer.append(layer)
    return net


def _ordered(ends: Iterable[Top | Function]) -> list[Function]:
    """Return the layers that lead to the ends, each behind those that it reads from."""
    placed: dict[Function, None] = {}
    for end in ends:
        waiting = [end.fn if isinstance(end, Top) else end]
        while waiting:
            missing = [each.fn for each in waiting[-1].inputs if each.fn not in placed]
            if missing:
                waiting.append(missing[0])
            else:
                placed[waiting.pop()] = None
    return list(placed)


def _kind(type_name: str) -> type[Layer]:
    try:
        return layer_class(type_name)
    except NetError as error:
        raise UnknownNameError(f"L.{type_name}: {error}") from None


@cache
def _settings(type_name: str) -> list[str]:
    """Return the fields of LayerParameter that hold a type's settings, its own message first."""
    fields = caffe_pb2.LayerParameter.DESCRIPTOR.fields
    own = [
        field.name
        for field in fields
        if field.message_type and field.message_type.name == f"{type_name}Parameter"
    ]
    return list(dict.fromkeys([*own, *layer_class(type_name).settings]))


def _set(layer: caffe_pb2.LayerParameter, name: str, value: object, where: str) -> None:
    """Set a field of the layer, or of one of the messages that hold its type's settings."""
    holders: list[Message] = [layer]
    if not name.endswith("param"):
        holders = [*(getattr(layer, each) for each in _settings(layer.type)), layer]
    for holder in holders:
        if name in holder.DESCRIPTOR.fields_by_name:
            _assign(holder, name, value, where)
            return
    known = [field for holder in holders for field in holder.DESCRIPTOR.fields_by_name]
    raise _unknown(name, known, holders, where)


def _assign(message: Message, name: str, value: object, where: str) -> None:
    """Set one field of a message from Python values."""
    field = message.DESCRIPTOR.fields_by_name.get(name)
    if field is None:
        raise _unknown(name, list(message.DESCRIPTOR.fields_by_name), [message], where)
    where = f"{where}: {name}"
    held = getattr(message, name)
    if value is None:
        return
    if hasattr(held, "extend"):
        values = list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value]
        for each in values:
            if field.message_type:
                _fill(held.add(), each, where)
            else:
                _scalar(field, each, held.append, where)
    elif field.message_type:
        _fill(held, value, where)
    else:
        _scalar(field, value, partial(setattr, message, name), where)


def _fill(message: Message, value: object, where: str) -> None:
    """Fill a message from a dict, or from a message of the same kind."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            _assign(message, name, each, where)
    elif isinstance(value, type(message)):
        message.MergeFrom(value)
    else:
        known = ", ".join(f"{name}=..." for name in list(message.DESCRIPTOR.fields_by_name)[:3])
        raise LayerError(f"{where}: expected a dict({known}), got {_shown(value)}")
    if isinstance(message, caffe_pb2.FillerParameter):
        check_type(message, lambda problem: LayerError(f"{where}: {problem}"))


def _scalar(field: Any, value: Any, put: Callable[[Any], object], where: str) -> None:
    """Hand a number, a text or an enum's value to ``put``."""
    if isinstance(value, np.generic):
        value = value.item()
    elif isinstance(value, os.PathLike):
        value = os.fspath(value)
    known = field.enum_type.values_by_name if field.enum_type else {}
    try:
        put(known[value].number if value in known else value)
    except (TypeError, ValueError):
        expected = f"one of {', '.join(known)}" if known else EXPECTED[field.cpp_type]
        near = did_you_mean(value, known) if isinstance(value, str) else ""
        raise LayerError(f"{where}: expected {expected}, got {_shown(value)}{near}") from None


def _unknown(name: str, known: Sequence[str], holders: Sequence[Message], where: str) -> LayerError:
    """Return the error for a parameter that does not exist; it may belong one level deeper."""
    inside = [
        field.name
        for holder in holders
        for field in holder.DESCRIPTOR.fields
        if field.message_type and name in field.message_type.fields_by_name
    ]
    hint = did_you_mean(name, known)
    if 0 < len(inside) <= MOST_PLACES:
        hint = f"; it belongs inside {' or '.join(f'{each}=dict({name}=...)' for each in inside)}"
    return LayerError(f"{where}: unknown parameter '{name}'{hint}")


def _shown(value: object) -> str:
    if isinstance(value, (str, int, float, dict, list)):
        text = repr(value)
        return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."
    return f"a {type(value).__name__}"
