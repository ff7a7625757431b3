"""The CUDA kernels' source: NVIDIA's compiler takes it, and no kernel goes untested."""

from __future__ import annotations

import ctypes
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from protocaffe.engines.cuda import device

SOURCE = device.kernel_source()
FILES = sorted(Path(device.__file__).with_name("kernels").glob("*.cu"))
OPTIONS = ("--std=c++17",)


def _nvrtc() -> ctypes.CDLL | None:
    """Open NVIDIA's run-time compiler, which needs no GPU."""
    if find_spec("nvidia") is None:
        return None
    for folder in find_spec("nvidia").submodule_search_locations or ():
        for file in sorted(Path(folder).glob("*/lib/libnvrtc.so.*")):
            return ctypes.CDLL(str(file))
    return None


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("definition", ["", "-DREAL_IS_FP16", "-DREAL_IS_BF16"])
def test_nvidias_compiler_takes_the_kernels(architecture: str, definition: str) -> None:
    nvrtc = _nvrtc()
    if nvrtc is None:
        pytest.skip("no NVRTC here: pip install nvidia-cuda-nvrtc-cu12")
    program = ctypes.c_void_p()
    code = SOURCE.encode()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), code, b"kernels.cu", 0, None, None) == 0
    words = [option.encode() for option in (*OPTIONS, f"--gpu-architecture={architecture}")]
    words += [definition.encode()] * bool(definition)
    status = nvrtc.nvrtcCompileProgram(program, len(words), (ctypes.c_char_p * len(words))(*words))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, text)
    assert status == 0, text.value.decode()
    assert "warning" not in text.value.decode()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_files_leave_no_macros_for_each_other(file: Path) -> None:
    source = file.read_text()
    macros = {
        direction: set(re.findall(rf"^#{direction} (\w+)", source, re.MULTILINE))
        for direction in ("define", "undef")
    }
    assert file.name == "common.cu" or macros["define"] == macros["undef"]


def test_every_kernel_is_used() -> None:
    names = set(re.findall(r"__global__ void (\w+)\(", SOURCE))
    folder = Path(device.__file__).parent
    python = "".join(file.read_text() for file in folder.glob("*.py"))
    from protocaffe.engines.cuda.update import RULES

    used = {name for name in names if f'"{name}"' in python} | {f"update_{rule}" for rule in RULES}
    assert used == names
