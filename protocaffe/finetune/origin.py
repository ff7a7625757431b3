"""The model that fine-tuning starts from: a model of the zoo, a folder, a prototxt, or weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from protocaffe.errors import FileError, NetError
from protocaffe.finetune.trunk import Trunk, find_trunk
from protocaffe.proto.binary import read_binary
from protocaffe.proto.caffe_pb2 import NetParameter, SolverParameter
from protocaffe.proto.files import DOWNLOADED, missing_file
from protocaffe.proto.stored import is_hdf5
from protocaffe.proto.text import read_net, read_solver
from protocaffe.proto.upgrade import upgrade_net
from protocaffe.zoo.catalogue import README, Model
from protocaffe.zoo.download import MIRROR, open_model, weights_path

TRAINING = ("train_val.prototxt", "*train*val*.prototxt", "*train*.prototxt")
DEPLOYED = ("deploy.prototxt", "*deploy*.prototxt")
SOLVER = ("solver.prototxt", "*solver*.prototxt")
"""How files of a model are called; the first pattern that fits counts."""


@dataclass
class Origin:
    """What is known of the model.

    Attributes:
        name: what to call it in names of files.
        folder: where it lies.
        trunk: the layers that are kept.
        weights: the file with its weights; None to begin with random ones.
        shape: channels, height and width of its images, as far as known (0 where not).
        solver: the settings it was trained with; empty if there are none.
    """

    name: str
    folder: Path
    trunk: Trunk
    weights: Path | None
    shape: tuple[int, int, int]
    solver: SolverParameter


def read_origin(model: str, weights: str = "", layer: str = "", *, scratch: bool = False) -> Origin:
    """Find out all about a model.

    Args:
        model: a name of the zoo, a folder, a net's prototxt, or a ``.caffemodel`` that has its
            layers in it, as Caffe writes them.
        weights: the ``.caffemodel``, instead of the one that the model's readme names.
        layer: see :func:`~protocaffe.finetune.trunk.find_trunk`.
        scratch: begin with random weights.

    Raises:
        ProtocaffeError: there is no such model, it has no weights, or it is not fit for this.
    """
    path = Path(model)
    if path.is_file() or path.suffix in (".caffemodel", ".prototxt", ".h5"):
        origin = _from_file(path, layer)
    else:
        origin = _from_model(open_model(model), layer, needs_weights=not (weights or scratch))
    _refuse_code(origin)
    if weights:
        origin.weights = Path(weights)
    if scratch:
        origin.weights = None
    elif origin.weights is None:
        raise FileError(f"{model}: give its weights, too: --weights=FILE.caffemodel")
    elif not origin.weights.is_file():
        raise missing_file(origin.weights)
    return origin


def _from_model(model: Model, layer: str, *, needs_weights: bool) -> Origin:
    training, deployed = _find(model.folder, TRAINING), _find(model.folder, DEPLOYED)
    source = training or deployed
    if source is None:
        raise FileError(f"{model.folder}: has no train_val.prototxt and no deploy.prototxt")
    net, _ = read_net(source)
    shape = _input_shape(read_net(deployed)[0] if deployed else net)
    solver = _find(model.folder, SOLVER)
    weights = weights_path(model) if model.caffemodel else None
    if needs_weights and (weights is None or not weights.exists()):
        raise FileError(_no_weights(model, weights))
    return Origin(
        *(model.id, model.folder, find_trunk(net, str(source), layer), weights, shape),
        read_solver(solver)[0] if solver else SolverParameter(),
    )


def _from_file(path: Path, layer: str) -> Origin:
    if path.suffix == ".prototxt":
        net, weights = read_net(path)[0], None
    else:
        net, weights = _stored_net(path), path
    trunk = find_trunk(net, str(path), layer)
    if weights is not None:
        _refuse_stored_code(trunk, path)
    return Origin(path.stem, path.parent, trunk, weights, _input_shape(net), SolverParameter())


def _stored_net(path: Path) -> NetParameter:
    """Return the layers that a ``.caffemodel`` has in it besides weights."""
    if is_hdf5(path):
        raise FileError(
            f"{path}: HDF5 files hold weights only; give the net's prototxt as --model and this "
            f"file as --weights"
        )
    net = read_binary(path, NetParameter())
    upgrade_net(net, str(path))
    if not any(layer.type and layer.top for layer in net.layer):
        raise FileError(
            f"{path}: holds weights, but not how the layers are joined; give the net's prototxt "
            f"as --model and this file as --weights"
        )
    _thaw(net)
    return net


def _thaw(net: NetParameter) -> None:
    """Let all layers learn: a file tells which ones the last run of several let learn."""
    for layer in net.layer:
        del layer.propagate_down[:]
        if layer.type != "BatchNorm":
            for spec in layer.param:
                if not spec.lr_mult:
                    spec.ClearField("lr_mult")


def _input_shape(net: NetParameter) -> tuple[int, int, int]:
    for layer in net.layer:
        if layer.type == "Input" and layer.input_param.shape:
            shape = layer.input_param.shape[0].dim
            if len(shape) == 4:
                return shape[1], shape[2], shape[3]
    return (0, 0, 0)


def _find(folder: Path, patterns: tuple[str, ...]) -> Path | None:
    for pattern in patterns:
        found = sorted(
            path
            for path in folder.glob(pattern)
            if ("solver" in path.name) == ("solver" in pattern)
        )
        if found:
            return found[0]
    return None


def _no_weights(model: Model, weights: Path | None) -> str:
    if weights is None:
        return f"{model.folder / README}: names no caffemodel; give --weights=FILE.caffemodel"
    if model.url:
        return (
            f"{weights}: not there yet; 'protocaffe zoo download {model.id}' gets it ({MIRROR} "
            f"names a mirror), or give --weights=FILE.caffemodel"
        )
    return (
        f"{weights}: not there; {model.folder / README} tells how to train it, or give "
        f"--weights=FILE.caffemodel"
    )


def _refuse_code(origin: Origin) -> None:
    """Import nothing for a model that was downloaded."""
    if (origin.folder / DOWNLOADED).exists():
        _refuse(origin.trunk, origin.folder, f"delete {origin.folder / DOWNLOADED}")


def _refuse_stored_code(trunk: Trunk, path: Path) -> None:
    _refuse(trunk, path, "give the net's prototxt as --model and this file as --weights")


def _refuse(trunk: Trunk, place: Path, way_out: str) -> None:
    for layer in trunk.layers:
        if layer.type == "Python":
            raise NetError(
                f"{place}: layer '{layer.name}' runs code of module "
                f"'{layer.python_param.module}'; if you have read it and trust it, {way_out}"
            )
