"""The layer type for layers that users write in Python."""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from sysconfig import get_path
from typing import Any

from protocaffe.blob import Blob
from protocaffe.errors import ProtocaffeError, did_you_mean
from protocaffe.layers.base import Layer, register
from protocaffe.proto import caffe_pb2
from protocaffe.proto.files import DOWNLOADED, StrPath

OF_LAYERS = {*dir(Layer), *vars(Layer(caffe_pb2.LayerParameter()))} - {"blobs"}
"""Attributes that a layer has anyway, and that a class for pycaffe may use for itself."""

LIBRARIES = (
    "<frozen",
    os.path.join(Path(__file__).parents[1], ""),
    *{os.path.join(get_path(name), "") for name in ("stdlib", "purelib", "platlib")},
)
"""Where code lies that is not the user's own."""


@register("Python")
class Python(Layer):
    """A class of your own: ``layer`` in ``module``, derived from :class:`protocaffe.Layer`.

    The module is looked for where Python looks (PYTHONPATH), then in the working directory.
    Building a net with such a layer runs the module's code: open only nets whose code you trust.
    A net in or below a folder with a file ``.downloaded``, which ``protocaffe zoo`` leaves in
    what it gets from elsewhere, is refused; delete that file when you have read the code.

    The class has the four methods of pycaffe's layers: ``setup(self, bottom, top)``,
    ``reshape(self, bottom, top)``, ``forward(self, bottom, top)`` and ``backward(self, top,
    propagate_down, bottom)``. They find ``param_str`` in ``self.param_str``, TRAIN (0) or TEST (1)
    in ``self.phase``, and learnable blobs that ``setup`` adds by ``self.blobs.add_blob(*shape)``
    in ``self.blobs``. ``reshape`` also runs before each ``forward``. A layer that computes a loss
    needs a ``loss_weight`` in the prototxt. Arrays are NumPy's on every engine; a class that says
    ``on_host = False`` gets those of ``self.xp`` (CuPy on a GPU) and computes with that module.

    Bottoms: what the class takes. Tops: what it makes.
    Reference: Caffe's PythonLayer.

    Example:
        layer { name: "double" type: "Python" bottom: "data" top: "doubled"
            python_param { module: "my_layers" layer: "Multiply" param_str: "2" } }
    """

    on_host = True
    dynamic = True
    in_place = True

    def __new__(cls, param: caffe_pb2.LayerParameter, *, where: str = "", **kwargs: Any) -> Python:
        """Make an object of the user's class, whose methods this class guards."""
        layer = Layer(param, where=where)
        _refuse_downloaded(layer)
        user = _find_class(layer)
        body = {"on_host": _wants_host(user)}
        made: Python = super().__new__(type(user.__name__, (cls, user), body))
        return made

    def __init__(self, param: caffe_pb2.LayerParameter, **kwargs: Any) -> None:
        super().__init__(param, **kwargs)
        self.param_str = param.python_param.param_str
        self.param_str_ = self.param_str  # its name until 2015
        self._users: dict[str, Any] = {}

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        with _blame(self, "setup"), self._users_names():
            super().setup(bottom, top)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        with _blame(self, "reshape"), self._users_names():
            super().reshape(bottom, top)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.reshape(bottom, top)
        with _blame(self, "forward"), self._users_names():
            super().forward(bottom, top)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        with _blame(self, "backward"), self._users_names():
            super().backward(top, propagate_down, bottom)

    @contextmanager
    def _users_names(self) -> Iterator[None]:
        """Let the user's code set any attribute, a layer's own too (``self.name``), for itself."""
        values = vars(self)
        own = {name: values[name] for name in OF_LAYERS if name in values}
        values.update(self._users)
        try:
            yield
        finally:
            for name in OF_LAYERS & values.keys():
                value = values.pop(name)
                if name not in own or value is not own[name]:
                    self._users[name] = value
            values.update(own)


def _wants_host(user: type[Layer]) -> bool:
    """Whether a class takes NumPy arrays, as pycaffe's layers do and all that do not say else."""
    said = (vars(each)["on_host"] for each in user.__mro__[:-2] if "on_host" in vars(each))
    return bool(next(said, True))


def _refuse_downloaded(layer: Layer) -> None:
    """Refuse to import code for a net that somebody else wrote and a program fetched."""
    mark = download_mark(re.sub(r":\d+$", "", layer.where)) if layer.where else None
    if mark is not None:
        raise layer.error(
            f"would run the code of module '{layer.param.python_param.module}', but this net was "
            f"downloaded ({mark} says from where); read the code, and if you trust it, delete "
            f"that file"
        )


def download_mark(path: StrPath) -> Path | None:
    """Return the file that says that a file was downloaded, from its folder or one above it."""
    folder = Path(path).parent
    for each in (folder, *Path(path).resolve().parents):
        if (each / DOWNLOADED).exists():
            return each / DOWNLOADED
    return None


def _find_class(layer: Layer) -> type[Layer]:
    """Return the class that the settings of ``layer`` name."""
    settings = layer.param.python_param
    if not settings.module or not settings.layer:
        raise layer.error("python_param needs a module and a layer, the name of a class in it")
    module = _import(settings.module, layer)
    classes = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Layer) and value is not Layer
    }
    place = f"{settings.module} ({getattr(module, '__file__', None) or 'this session'})"
    if settings.layer in classes:
        return _complete(classes[settings.layer], layer, place)
    if hasattr(module, settings.layer):
        raise layer.error(
            f"'{settings.layer}' in module {place} is not a class derived from protocaffe.Layer"
        )
    raise layer.error(
        f"module {place} has no class '{settings.layer}'{did_you_mean(settings.layer, classes)}"
    )


def _complete(found: type[Layer], layer: Layer, place: str) -> type[Layer]:
    """Return the class if it has the methods that every layer needs."""
    missing = [
        name for name in ("reshape", "forward") if getattr(found, name) is getattr(Layer, name)
    ]
    if missing:
        raise layer.error(
            f"class '{found.__name__}' in module {place} has no method {' and no '.join(missing)}"
        )
    return found


def _import(name: str, layer: Layer) -> Any:
    folder = os.getcwd()
    sys.path.append(folder)
    try:
        with _blame(layer, f"import of module {name}"):
            try:
                return importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                    raise  # the module is there, what it imports is not
                raise layer.error(
                    f"no module '{error.name}' where Python looks (PYTHONPATH) or in {folder}"
                ) from None
    finally:
        sys.path.remove(folder)


@contextmanager
def _blame(layer: Layer, what: str) -> Iterator[None]:
    """Turn any error of the user's code into one that names the layer and the line."""
    try:
        yield
    except ProtocaffeError as error:
        if f"layer '{layer.name}'" in str(error):
            raise
        raise Layer.error(layer, f"{what} failed at {_place(error)}: {error}") from error
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise Layer.error(layer, f"{what} failed at {_place(error)}: {said}") from error


def _place(error: Exception) -> str:
    """Return file and line of the user's code where it went wrong, not of a library it calls."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if not each.filename.startswith(LIBRARIES)] or frames
    return f"{own[-1].filename}:{own[-1].lineno}"
