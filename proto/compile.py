"""Compile caffe.proto into protocaffe/proto/ (`make proto`).

That is: the descriptor, the type stub, and the comments, which the layers' documentation shows.

Needs grpcio-tools, which brings protoc. No Python code is generated: see
protocaffe/proto/caffe_pb2.py for the reason.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "protocaffe" / "proto"


def compile_proto(folder: Path) -> tuple[bytes, str, str]:
    """Return the serialized descriptor, the stub and the comments of folder/caffe.proto."""
    with tempfile.TemporaryDirectory() as out:
        descriptor_set = Path(out, "caffe.bin")
        status = protoc.main(
            [
                "protoc",
                f"-I{folder}",
                f"-I{files('grpc_tools') / '_proto'}",
                "--include_source_info",
                f"--descriptor_set_out={descriptor_set}",
                f"--pyi_out={out}",
                "caffe.proto",
            ]
        )
        if status != 0:
            sys.exit(status)
        descriptor = FileDescriptorSet.FromString(descriptor_set.read_bytes()).file[0]
        stub = Path(out, "caffe_pb2.pyi").read_text()
    comments = json.dumps(_comments(descriptor), indent=1) + "\n"
    return _slim(descriptor).SerializeToString(deterministic=True), _strict(stub), comments


def _comments(descriptor: FileDescriptorProto) -> dict[str, str]:
    """Return what caffe.proto says about each message and each field, as "Message.field"."""
    number = FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER
    comments = {}
    for place in descriptor.source_code_info.location:
        text = " ".join(place.leading_comments.split())
        match list(place.path):
            case [kind, index] if text and kind == number:
                comments[descriptor.message_type[index].name] = text
            case [kind, index, DescriptorProto.FIELD_FIELD_NUMBER, field] if (
                text and kind == number
            ):
                message = descriptor.message_type[index]
                comments[f"{message.name}.{message.field[field].name}"] = text
    return comments


def _slim(descriptor: FileDescriptorProto) -> FileDescriptorProto:
    """Drop what nobody uses: places and comments, and the JSON names, a third of the rest."""
    descriptor.ClearField("source_code_info")
    for message in descriptor.message_type:
        for field in message.field:
            field.ClearField("json_name")
    return descriptor


def _strict(stub: str) -> str:
    """Give protoc's bare Mapping the type arguments that `mypy --strict` wants."""
    return stub.replace("_Mapping]", "_Mapping[str, object]]")


if __name__ == "__main__":
    binary, stub, comments = compile_proto(HERE)
    (PACKAGE / "caffe_descriptor.bin").write_bytes(binary)
    (PACKAGE / "caffe_pb2.pyi").write_text(stub)
    (PACKAGE / "caffe_comments.json").write_text(comments)
