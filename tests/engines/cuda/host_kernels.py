"""CUDA C++ kernels compiled for the host, called as CuPy's RawModule calls them."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

COMPILER = shutil.which("g++")
KERNEL = re.compile(r'extern "C" __global__ void (\w+)\(([^)]*)\) \{(.*?)\n\}', re.DOTALL)
TYPES = {
    "float*": np.float32,
    "int*": np.int32,
    "u32*": np.uint32,
    "short*": np.int16,
    "float": np.float32,
    "int": np.int32,
}


class Kernel:
    """A kernel and the types of its arguments, which CUDA itself does not check."""

    def __init__(self, name: str, arguments: str, body: str, halves: bool) -> None:
        self.name = name
        self.halves = halves
        self.types = [_type(each) for each in arguments.split(",")]
        self.waits = "__syncthreads" in body or "block_" in body

    def launcher(self) -> str:
        """Return C++ that calls it with an array of pointers to arguments."""
        casts = ", ".join(
            f"*(({kind.replace('u32', 'unsigned int')}*)a[{place}])"
            for place, kind in enumerate(self.types)
        )
        return (
            f"static void call_{self.name}(void** a) {{ {self.name}({casts}); }}\n"
            f'extern "C" void launch_{self.name}(unsigned blocks, void** a) '
            f"{{ run(call_{self.name}, {str(self.waits).lower()}, blocks, a); }}\n"
        )

    def dtype(self, kind: str) -> type[np.generic]:
        """Return the NumPy type that an argument of a type has."""
        if kind == "real*":
            return np.uint16 if self.halves else np.float32
        return TYPES[kind]

    def structures(self) -> set[str]:
        """Return the types of arguments that are structures."""
        return {kind for kind in self.types if kind not in TYPES and kind != "real*"}


def _type(argument: str) -> str:
    text = argument.replace("const ", "").strip()
    if "*" in text:
        return text.split("*")[0].strip() + "*"
    return text.split()[0]


@cache
def compiled(source: str, *definitions: str) -> tuple[dict[str, Kernel], ctypes.CDLL]:
    """Return the kernels of a source by name, and the library that has their launchers."""
    expanded = _expand(source)
    halves = bool(definitions)
    kernels = {found[1]: Kernel(*found.groups(), halves) for found in KERNEL.finditer(expanded)}
    shim = Path(__file__).with_name("host.h").read_text()
    code = shim + source + "".join(kernel.launcher() for kernel in kernels.values())
    for name in set[str]().union(*(kernel.structures() for kernel in kernels.values())):
        code += f'extern "C" int sizeof_{name}() {{ return sizeof({name}); }}\n'
    with tempfile.TemporaryDirectory() as folder:
        file, library = Path(folder) / "kernels.cpp", Path(folder) / "kernels.so"
        file.write_text(code)
        command = [
            COMPILER,
            "-std=c++17",
            "-O1",
            "-ffp-contract=off",
            "-shared",
            "-fPIC",
            *definitions,
        ]
        subprocess.run([*command, "-o", str(library), str(file)], check=True, capture_output=True)
        return kernels, ctypes.CDLL(str(library))


def _expand(source: str) -> str:
    """Put in the one macro that stands for arguments."""
    found = re.search(r"#define UPDATE_ARGUMENTS(.*?[^\\])\n", source, re.DOTALL)
    if not found:
        return source
    return source.replace("(UPDATE_ARGUMENTS", "(" + found[1].replace("\\\n", " "))


def check_and_pack(kernel: Kernel, library: ctypes.CDLL, arguments: tuple) -> ctypes.Array:
    """Return pointers to the arguments; refuse a wrong number or type, or a strided array."""
    assert len(arguments) == len(kernel.types), f"{kernel.name}: {len(arguments)} arguments"
    packed = (ctypes.c_void_p * len(arguments))()
    packed.kept = []
    for place, (value, kind) in enumerate(zip(arguments, kernel.types, strict=True)):
        what = f"argument {place} of {kernel.name}, {kind}"
        if kind in kernel.structures():
            assert value.size == 1, what
            assert value.nbytes == library[f"sizeof_{kind}"](), what
            packed.kept.append(value)
            packed[place] = value.ctypes.data
            continue
        assert value.dtype == kernel.dtype(kind), f"{what}: {value.dtype}"
        if kind.endswith("*"):
            assert isinstance(value, np.ndarray), what
            assert value.flags.c_contiguous, f"{what}: not contiguous"
            box = ctypes.c_void_p(value.ctypes.data)
        else:
            box = (ctypes.c_float if kind == "float" else ctypes.c_int)(value)
        packed.kept.append((box, value))
        packed[place] = ctypes.addressof(box)
    return packed
