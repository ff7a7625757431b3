"""Compile caffe.proto into protocaffe/proto/: the descriptor and the type stub (`make proto`).

Needs grpcio-tools, which brings protoc. No Python code is generated: see
protocaffe/proto/caffe_pb2.py for the reason.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "protocaffe" / "proto"


def compile_proto(folder: Path) -> tuple[bytes, str]:
    """Return the serialized FileDescriptorProto and the stub of folder/caffe.proto."""
    with tempfile.TemporaryDirectory() as out:
        descriptor_set = Path(out, "caffe.bin")
        status = protoc.main(
            [
                "protoc",
                f"-I{folder}",
                f"-I{files('grpc_tools') / '_proto'}",
                f"--descriptor_set_out={descriptor_set}",
                f"--pyi_out={out}",
                "caffe.proto",
            ]
        )
        if status != 0:
            sys.exit(status)
        descriptor = FileDescriptorSet.FromString(descriptor_set.read_bytes()).file[0]
        stub = Path(out, "caffe_pb2.pyi").read_text()
    return _slim(descriptor).SerializeToString(deterministic=True), _strict(stub)


def _slim(descriptor: FileDescriptorProto) -> FileDescriptorProto:
    """Drop the JSON names: nobody uses them, and they are a third of the file."""
    for message in descriptor.message_type:
        for field in message.field:
            field.ClearField("json_name")
    return descriptor


def _strict(stub: str) -> str:
    """Give protoc's bare Mapping the type arguments that `mypy --strict` wants."""
    return stub.replace("_Mapping]", "_Mapping[str, object]]")


if __name__ == "__main__":
    binary, stub = compile_proto(HERE)
    (PACKAGE / "caffe_descriptor.bin").write_bytes(binary)
    (PACKAGE / "caffe_pb2.pyi").write_text(stub)
