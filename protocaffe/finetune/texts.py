"""The messages of a fine-tuned net: for training, for use, and the solver's settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from protocaffe.finetune.trunk import Trunk
from protocaffe.proto import caffe_pb2
from protocaffe.proto.caffe_pb2 import (
    FillerParameter,
    LayerParameter,
    NetParameter,
    SolverParameter,
    TransformationParameter,
)

LABEL = "label"
KEPT_SETTINGS = (
    *("type", "momentum", "momentum2", "delta", "rms_decay", "weight_decay"),
    *("regularization_type", "clip_gradients"),
)
"""What the new solver takes from the one that the model was trained with."""
ROUNDS = 10
"""How often every image is seen unless the number of iterations is given."""
LEAST, MOST = 100, 5000
"""Bounds of that number of iterations."""
TEST_BATCH = 50
SHOWN = 20
"""How many lines of the log tell the loss."""
TESTS = 5
"""How often the net is tested on the way."""


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune.

    Attributes:
        iterations: updates; 0 for ten rounds through the images, but 100 to 5,000.
        batch_size: images per update.
        base_lr: learning rate; 0 for a tenth of the one the model was trained with, or for all
            of it if the weights are random.
        lr_mult: how many times faster the new layer learns.
        freeze: whether the new layer alone learns.
        seed: of everything that is random.
    """

    iterations: int = 0
    batch_size: int = 32
    base_lr: float = 0
    lr_mult: float = 10
    freeze: bool = False
    seed: int = 1


def with_new_head(trunk: Trunk, suffix: str, outputs: int, lr_mult: float) -> Trunk:
    """Return the trunk with a last layer of another name and size, which learns faster.

    The new name, also of the layers behind it, keeps old weights from being loaded.

    Args:
        trunk: not changed.
        suffix: put behind the old names.
        outputs: the number of classes.
        lr_mult: how many times faster than the rest.
    """
    renamed = {trunk.last, *trunk.after}
    blobs = {top for layer in trunk.layers if layer.name in renamed for top in layer.top}
    layers = []
    for old in trunk.layers:
        layer = LayerParameter()
        layer.CopyFrom(old)
        if old.name in renamed:
            layer.name = f"{old.name}_{suffix}"
        for names in (layer.bottom, layer.top):
            names[:] = [f"{name}_{suffix}" if name in blobs else name for name in names]
        if old.name == trunk.last:
            _make_head(layer, outputs, lr_mult)
        layers.append(layer)
    return Trunk(
        *(f"{trunk.name or 'net'}_{suffix}", layers, trunk.image, f"{trunk.scores}_{suffix}"),
        *(f"{trunk.last}_{suffix}", [f"{name}_{suffix}" for name in trunk.after]),
        *(trunk.transform, trunk.mirror),
    )


def _make_head(layer: LayerParameter, outputs: int, lr_mult: float) -> None:
    is_inner = layer.type == "InnerProduct"
    settings = layer.inner_product_param if is_inner else layer.convolution_param
    settings.num_output = outputs
    if not settings.HasField("weight_filler"):
        settings.weight_filler.CopyFrom(FillerParameter(type="gaussian", std=0.01))
    settings.bias_filler.CopyFrom(FillerParameter(type="constant"))
    del layer.param[:]
    layer.param.add(lr_mult=lr_mult, decay_mult=1)
    if settings.bias_term:
        layer.param.add(lr_mult=2 * lr_mult, decay_mult=0)


def freeze(trunk: Trunk, params: Mapping[str, Sequence[object]]) -> None:
    """Let nothing but the last layer learn.

    Args:
        trunk: is changed.
        params: the parameters of its layers, by name.
    """
    for layer in trunk.layers:
        if layer.name != trunk.last:
            while len(layer.param) < len(params.get(layer.name, ())):
                layer.param.add()
            for spec in layer.param:
                spec.lr_mult = 0


def deployed(trunk: Trunk, shape: Sequence[int]) -> NetParameter:
    """Return the net for use: one image of that shape in, probabilities out."""
    net = NetParameter(name=trunk.name)
    data = net.layer.add(name=trunk.image, type="Input", top=[trunk.image])
    data.input_param.shape.add(dim=[1, *shape])
    for each in trunk.layers:
        layer = net.layer.add()
        layer.CopyFrom(each)
        del layer.param[:]
        for descriptor, settings in each.ListFields():
            if descriptor.name.endswith("_param") and not descriptor.is_repeated:
                for filler in ("weight_filler", "bias_filler", "filler"):
                    if filler in settings.DESCRIPTOR.fields_by_name:
                        getattr(layer, descriptor.name).ClearField(filler)
    net.layer.add(name="prob", type="Softmax", bottom=[trunk.scores], top=["prob"])
    return net


def trained(
    trunk: Trunk,
    folder: Path,
    transform: TransformationParameter,
    mirror: bool,
    batches: tuple[int, int],
) -> NetParameter:
    """Return the net for training and testing.

    Args:
        trunk: with its new last layer.
        folder: where ``train_lmdb`` and ``test_lmdb`` will be.
        transform: what is done to the images.
        mirror: whether to mirror half of the training images.
        batches: images per batch in training and in testing.
    """
    net = NetParameter(name=trunk.name)
    for phase, part, size in zip(("TRAIN", "TEST"), ("train", "test"), batches, strict=True):
        data = net.layer.add(name="data", type="Data", top=[trunk.image, LABEL])
        data.include.add(phase=caffe_pb2.Phase.Value(phase))
        data.transform_param.CopyFrom(transform)
        if mirror and phase == "TRAIN":
            data.transform_param.mirror = True
        data.data_param.source = str(folder / f"{part}_lmdb")
        data.data_param.batch_size = size
        data.data_param.backend = caffe_pb2.DataParameter.LMDB
    net.layer.extend(trunk.layers)
    judged = [trunk.scores, LABEL]
    accuracy = net.layer.add(name="accuracy", type="Accuracy", bottom=judged, top=["accuracy"])
    accuracy.include.add(phase=caffe_pb2.TEST)
    net.layer.add(name="loss", type="SoftmaxWithLoss", bottom=judged, top=["loss"])
    return net


def solver_settings(
    recipe: Recipe, old: SolverParameter, folder: Path, images: tuple[int, int], weights: str
) -> SolverParameter:
    """Return the solver: the rate falls to a tenth after two thirds of the iterations.

    Args:
        recipe: what the user wants.
        old: what the model was trained with.
        folder: where net and snapshots go.
        images: how many there are to train with, and to test on.
        weights: the file to begin with; empty for random ones.
    """
    train, test = images
    wanted = min(max(math.ceil(ROUNDS * train / recipe.batch_size), LEAST), MOST)
    iterations = recipe.iterations or wanted
    solver = SolverParameter(net=str(folder / "train_val.prototxt"), momentum=0.9)
    if weights:
        solver.weights.append(weights)
    for name in KEPT_SETTINGS:
        if old.HasField(name):
            setattr(solver, name, getattr(old, name))
    usual = old.base_lr / 10 if weights else old.base_lr
    solver.base_lr = recipe.base_lr or float(f"{usual:.6g}") or 0.001
    solver.lr_policy, solver.gamma = "step", 0.1
    solver.stepsize = math.ceil(2 * iterations / 3)
    solver.test_iter.append(math.ceil(test / TEST_BATCH))
    solver.test_interval = math.ceil(iterations / TESTS)
    solver.test_initialization = False
    solver.display = math.ceil(iterations / SHOWN)
    solver.max_iter = solver.snapshot = iterations
    solver.snapshot_prefix = str(folder / folder.name)
    solver.random_seed = recipe.seed
    return solver
