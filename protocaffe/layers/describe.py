"""What a layer type is, read off its class and off the schema: for people who write prototxts.

A layer's docstring has paragraphs of plain text, one paragraph with ``Bottoms:``, ``Tops:``,
``Parameters:`` and ``Reference:``, and an ``Example:`` section with prototxt.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from dataclasses import dataclass
from pkgutil import get_data
from typing import cast

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto

from protocaffe.layers.base import layer_class
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import format_text, parse_text

SECTION = re.compile(r"^(Example|Attributes):\n((?: +.*\n*)+)", re.MULTILINE)
FACT = re.compile(r"(?:^|(?<=[.] ))((?:Bottoms|Tops|Parameters?|Reference)[^:.()]*): ")


@dataclass(frozen=True)
class Field:
    """A field of a settings message.

    Attributes:
        name: as in a prototxt.
        type: a scalar type, a message's name, or the values of an enum separated by ``|``.
        message: whether the type is a message.
        label: ``optional``, ``required`` or ``repeated``.
        default: its value when it is not given; may be empty.
        comment: what it means; may be empty.
    """

    name: str
    type: str
    message: bool
    label: str
    default: str
    comment: str


@dataclass(frozen=True)
class Settings:
    """A message with settings.

    Attributes:
        message: its name.
        name: the field of ``LayerParameter`` that holds it; empty for one inside other messages.
        comment: what it is for.
        fields: in the order of the schema.
    """

    message: str
    name: str
    comment: str
    fields: list[Field]


@dataclass(frozen=True)
class Description:
    """A layer type.

    Attributes:
        type: its name in a prototxt.
        summary: what it does, in a line or two.
        text: further paragraphs.
        facts: by label (Bottoms, Tops, Parameters, Reference), what the docstring says.
        settings: its messages.
        example: a prototxt, or an empty string.
    """

    type: str
    summary: str
    text: list[str]
    facts: dict[str, str]
    settings: list[Settings]
    example: str


def describe(type_name: str) -> Description:
    """Return what is known about a layer type.

    Raises:
        NetError: there is no such type; the message offers the nearest one.
    """
    layer = layer_class(type_name)
    doc = inspect.cleandoc(layer.__doc__ or "")
    sections = {match[1]: match[2] for match in SECTION.finditer(doc)}
    summary, *text = [" ".join(part.split()) for part in SECTION.sub("", doc).strip().split("\n\n")]
    facts: dict[str, str] = {}
    if text and FACT.match(text[-1]):
        _, *parts = FACT.split(text.pop())
        facts = {label: fact.strip() for label, fact in zip(parts[::2], parts[1::2], strict=True)}
    return Description(
        *(type_name, summary, text, facts, _settings_of(type_name)),
        example=_example(sections.get("Example", "")),
    )


def describe_message(message: str, name: str = "") -> Settings:
    """Return what is known about a message of the schema.

    Args:
        message: its name, such as ``FillerParameter``.
        name: the field that holds it.
    """
    descriptor, comments = _message(message), _comments()
    fields = [
        Field(
            *(
                field.name,
                _type(field),
                field.type == FieldDescriptorProto.TYPE_MESSAGE,
            ),
            label=_lower(FieldDescriptorProto.Label.Name(field.label)),
            default=_default(field),
            comment=comments.get(f"{message}.{field.name}", ""),
        )
        for field in descriptor.field
    ]
    return Settings(message, name, comments.get(message, ""), fields)


def inner_messages(settings: list[Settings]) -> list[str]:
    """Return the names of the messages inside these, each once."""
    return sorted({field.type for each in settings for field in each.fields if field.message})


def settings_fields(type_name: str) -> list[str]:
    """Return the fields of ``LayerParameter`` that hold a layer type's settings."""
    fields = _message("LayerParameter").field
    own = [field.name for field in fields if _base(field) == f"{type_name}Parameter"]
    return list(dict.fromkeys([*own, *layer_class(type_name).settings]))


def _settings_of(type_name: str) -> list[Settings]:
    messages = {field.name: _base(field) for field in _message("LayerParameter").field}
    return [describe_message(messages[name], name) for name in settings_fields(type_name)]


def _message(name: str) -> DescriptorProto:
    message = DescriptorProto()
    getattr(caffe_pb2, name).DESCRIPTOR.CopyToProto(message)
    return message


def _type(field: FieldDescriptorProto) -> str:
    if field.type == FieldDescriptorProto.TYPE_ENUM:
        *_, outer, name = field.type_name.split(".")
        place = caffe_pb2 if outer == "caffe" else getattr(caffe_pb2, outer)
        return "|".join(getattr(place, name).keys())
    if field.type == FieldDescriptorProto.TYPE_MESSAGE:
        return _base(field)
    return _lower(FieldDescriptorProto.Type.Name(field.type))


def _default(field: FieldDescriptorProto) -> str:
    if field.type == FieldDescriptorProto.TYPE_FLOAT and field.default_value:
        return f"{float(field.default_value):g}"  # the schema has the digits of a float32
    return field.default_value


def _base(field: FieldDescriptorProto) -> str:
    """Return the name of a field's message or enum without those around it."""
    return field.type_name.rpartition(".")[2]


def _lower(name: str) -> str:
    """Turn TYPE_UINT32 into uint32."""
    return name.partition("_")[2].lower()


def _example(section: str) -> str:
    net = parse_text(textwrap.dedent(section), caffe_pb2.NetParameter())
    return format_text(net).rstrip()


def _comments() -> dict[str, str]:
    text = get_data("protocaffe.proto", "caffe_comments.json") or b""
    return cast("dict[str, str]", json.loads(text))
