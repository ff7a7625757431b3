"""``import caffe`` after ``import protocaffe``, in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

SAME = """
import protocaffe
import caffe
from caffe import layers as L, params as P
from caffe.coord_map import crop
from caffe.proto import caffe_pb2
import caffe.io, caffe.draw
from caffe._caffe import Layer
import caffe.pycaffe
import protocaffe.coord_map, protocaffe.io, protocaffe.proto.caffe_pb2

assert caffe is protocaffe is caffe.pycaffe
assert L is protocaffe.layers and P is protocaffe.params
assert crop is protocaffe.coord_map.crop
assert caffe_pb2 is protocaffe.proto.caffe_pb2 is caffe.io.caffe_pb2
assert caffe.io is protocaffe.io and Layer is protocaffe.Layer
assert protocaffe.__spec__.name == protocaffe.__name__ == "protocaffe"
assert caffe_pb2.__spec__.name == "protocaffe.proto.caffe_pb2"
"""


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_modules_are_the_same_by_both_names(tmp_path):
    done = run(SAME, tmp_path)
    assert done.returncode == 0, done.stderr


def test_layers_written_for_pycaffe_are_found(tmp_path):
    (tmp_path / "double.py").write_text("""
import caffe

class Double(caffe.Layer):
    def setup(self, bottom, top): pass
    def reshape(self, bottom, top): top[0].reshape(*bottom[0].data.shape)
    def forward(self, bottom, top): top[0].data[...] = 2 * bottom[0].data
    def backward(self, top, propagate_down, bottom): pass
""")
    (tmp_path / "net.prototxt").write_text("""
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 } } }
layer { name: "y" type: "Python" bottom: "x" top: "y"
        python_param { module: "double" layer: "Double" } }
""")
    code = "import protocaffe; print(protocaffe.Net('net.prototxt').forward(x=[1, 2])['y'])"
    assert run(code, tmp_path).stdout == "[2. 4.]\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"caffe/__init__.py": "own = 1"}, "'caffe'"),
        ({"caffe.py": "own = 1"}, "'caffe'"),
        ({"caffe/__init__.py": "", "caffe/pycaffe.py": "", "caffe/_caffe.py": ""}, "'caffe'"),
        ({"caffe/__init__.py": "", "caffe/pycaffe.py": "", "caffe/_caffe.cpp": ""}, "'protocaffe'"),
        ({"caffe/README.md": "a checkout of something else"}, "'protocaffe'"),
    ],
)
def test_another_package_of_the_name_is_left_alone(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    code = "import protocaffe, caffe; print(repr(caffe.__name__))"
    assert run(code, tmp_path).stdout.strip() == expected


def test_what_is_not_there_is_an_import_error(tmp_path):
    done = run("import protocaffe, caffe.nonsense", tmp_path)
    assert "ModuleNotFoundError: No module named 'caffe.nonsense'" in done.stderr


def test_a_package_inside_caffe_is_not_mixed_up_with_this_one(tmp_path):
    (tmp_path / "caffe").mkdir()
    (tmp_path / "caffe" / "__init__.py").write_text("")
    (tmp_path / "caffe" / "io.py").write_text("theirs = True")
    code = "import protocaffe, caffe.io; print(caffe.io.theirs, hasattr(protocaffe.io, 'theirs'))"
    assert run(code, tmp_path).stdout == "True False\n"
