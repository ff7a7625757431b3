import ast
import copy
import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from protocaffe.proto import caffe_pb2

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PACKAGE = ROOT / "protocaffe" / "proto"


def descriptor() -> FileDescriptorProto:
    file = FileDescriptorProto()
    caffe_pb2.DESCRIPTOR.CopyToProto(file)
    return file


def field_row(message: DescriptorProto, field: FieldDescriptorProto) -> tuple[str, ...]:
    type_name = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    default = field.default_value
    if type_name in ("float", "double") and default:
        default = str(np.float32(default))
    return (
        message.name,
        field.name,
        str(field.number),
        FieldDescriptorProto.Label.Name(field.label).removeprefix("LABEL_").lower(),
        field.type_name.removeprefix(".caffe.") or type_name,
        default.capitalize() if type_name == "bool" else default,
        "packed" if field.options.packed else "",
    )


def test_schema_is_that_of_caffe_and_has_numbers_of_its_own_for_the_rest():
    rows = set()
    file = descriptor()
    for enum in file.enum_type:
        rows |= {(f"enum {enum.name}", value.name, str(value.number)) for value in enum.value}
    for message in file.message_type:
        rows |= {field_row(message, field) for field in message.field}
        for enum in message.enum_type:
            name = f"enum {message.name}.{enum.name}"
            rows |= {(name, value.name, str(value.number)) for value in enum.value}
    lines = (HERE / "caffe_schema.tsv").read_text().splitlines()
    caffe = {tuple(line.split("\t")) for line in lines if not line.startswith("#")}
    assert caffe <= rows
    known = {row[0] for row in caffe}
    assert all(row[0] not in known or int(row[2]) >= 1000 for row in rows - caffe)


def load_compiler():
    pytest.importorskip("grpc_tools", reason="grpcio-tools brings protoc")
    spec = importlib.util.spec_from_file_location("compile_proto", ROOT / "proto" / "compile.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_descriptor_and_comments_are_up_to_date_with_the_proto_file():
    binary, _, comments = load_compiler().compile_proto(ROOT / "proto")
    fresh = FileDescriptorProto.FromString(binary)
    stored = FileDescriptorProto.FromString((PACKAGE / "caffe_descriptor.bin").read_bytes())
    assert fresh == stored, "run make proto"
    assert comments == (PACKAGE / "caffe_comments.json").read_text(), "run make proto"


def test_stub_has_every_message_field_and_enum_value():
    stub = {
        node.name: {
            name
            for part in ast.walk(node)
            if isinstance(part, ast.AnnAssign) and isinstance(name := part.target.id, str)
        }
        for node in ast.parse((PACKAGE / "caffe_pb2.pyi").read_text()).body
        if isinstance(node, ast.ClassDef)
    }
    for message in descriptor().message_type:
        names = {field.name for field in message.field}
        names |= {value.name for enum in message.enum_type for value in enum.value}
        numbers = {f"{field.name.upper()}_FIELD_NUMBER" for field in message.field}
        assert stub.pop(message.name) - numbers == names
    assert stub == {"Phase": {"TRAIN", "TEST"}}


def test_enums_work_as_in_generated_code():
    assert (caffe_pb2.TRAIN, caffe_pb2.TEST) == (0, 1)
    assert caffe_pb2.Phase.Name(caffe_pb2.TEST) == "TEST"
    assert caffe_pb2.DataParameter.LMDB == 1
    assert caffe_pb2.PoolingParameter.PoolMethod.Value("AVE") == caffe_pb2.PoolingParameter.AVE


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, copy.copy, lambda message: pickle.loads(pickle.dumps(message))]
)
def test_messages_can_be_copied_and_pickled(clone):
    net = caffe_pb2.NetParameter(name="n")
    net.layer.add(type="Clip", clip_param={"min": -1, "max": 1})
    for message in (net, net.layer[0].clip_param):
        twin = clone(message)
        assert twin == message
        assert type(twin) is type(message)
        assert twin is not message


def test_another_caffe_proto_in_the_default_pool_does_no_harm():
    """The other one has the same names and says something else; either may come first."""
    other = """
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe")
message = file.message_type.add(name="NetParameter")
message.field.add(name="other", number=1, type=5, label=1)
pool = descriptor_pool.Default()
pool.AddSerializedFile(file.SerializeToString())
Other = message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))
assert Other.FromString(Other(other=3).SerializeToString()).other == 3
"""
    ours = """
from protocaffe.proto.caffe_pb2 import NetParameter
net = NetParameter(name="n", layer=[{"name": "a"}])
assert NetParameter.FromString(net.SerializeToString()) == net
"""
    for program in (ours + other, other + ours):
        subprocess.run([sys.executable, "-c", program], check=True)
