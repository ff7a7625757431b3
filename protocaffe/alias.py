"""``import caffe`` in a program that has imported protocaffe.

Notebooks and layers written for pycaffe say ``from caffe import layers as L``, ``from caffe.proto
import caffe_pb2`` and ``import caffe`` again in every file. All of that means protocaffe, the very
same modules, unless a package of the name ``caffe`` is installed, which then is what they get. The
sources of pycaffe, without what has to be compiled, are none.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from types import ModuleType

PACKAGE = __name__.partition(".")[0]
CORES = ("caffe.pycaffe", "caffe._caffe")
"""The modules of pycaffe whose names are those of the package itself here."""


class CaffeFinder(MetaPathFinder, Loader):
    """Finds ``caffe`` and what is in it here."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to load ``caffe`` or ``caffe.*``, None if that is not protocaffe."""
        if fullname == "caffe":
            own = not _is_installed(fullname)
        else:
            own = fullname.startswith("caffe.") and sys.modules["caffe"] is sys.modules[PACKAGE]
        return ModuleSpec(fullname, self) if own and find_spec(_meant(fullname)) else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module that is meant in the place of the new one."""
        sys.modules[module.__name__] = import_module(_meant(module.__name__))


def _is_installed(name: str) -> bool:
    """Whether there is such a package that works; a folder with other files is none."""
    spec = PathFinder.find_spec(name)
    if spec is None or spec.origin is None:
        return False
    sources, compiled = (
        PathFinder.find_spec(core, spec.submodule_search_locations) for core in CORES
    )
    return sources is None or compiled is not None


def _meant(name: str) -> str:
    return PACKAGE if name in CORES else PACKAGE + name.removeprefix("caffe")


def install() -> None:
    """Let ``import caffe`` find this package."""
    # First, since a package's modules would be found by its path, and loaded a second time.
    sys.meta_path.insert(0, CaffeFinder())
