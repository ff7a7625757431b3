"""The part of a classification net that fine-tuning keeps: from the image to the scores.

It is taken from a training net, from a deployed one or from the layers that a ``.caffemodel``
holds: whatever brings data or depends on labels is left out, and so are further outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protocaffe.errors import NetError, UsageError, did_you_mean
from protocaffe.graph.filter import why_left_out
from protocaffe.graph.node import Node
from protocaffe.proto import caffe_pb2
from protocaffe.proto.caffe_pb2 import LayerParameter, NetParameter, TransformationParameter

SCORING = ("InnerProduct", "Convolution")
"""Layer types whose ``num_output`` can be the number of classes."""
JUDGES = (
    *("Softmax", "SoftmaxWithLoss", "ArgMax", "Accuracy", "Silence", "Sigmoid"),
    *("HingeLoss", "InfogainLoss", "MultinomialLogisticLoss", "SigmoidCrossEntropyLoss"),
)
"""Layer types that look at scores and are not part of how they come about."""


@dataclass
class Trunk:
    """The layers from the image to the scores, in order.

    Attributes:
        name: the net's name.
        layers: the layers, without weights and without their old phase.
        image: name of the blob that they read.
        scores: name of the blob that they make.
        last: name of the layer whose outputs are the classes.
        after: names of the layers behind that one, such as a pooling over what is left of space.
        transform: what was done to the images the net was trained with, if it says so.
        mirror: whether half of them were mirrored.
    """

    name: str
    layers: list[LayerParameter]
    image: str
    scores: str
    last: str
    after: list[str]
    transform: TransformationParameter
    mirror: bool


def find_trunk(net: NetParameter, where: str, layer: str = "") -> Trunk:
    """Take the trunk out of a net.

    Args:
        net: of the current format; not changed.
        where: its file, for messages.
        layer: the layer that has one output per class; by default the deepest one whose outputs
            become probabilities or a loss.

    Raises:
        NetError: the net has no such trunk, or more than one image goes in.
        UsageError: ``layer`` is no layer that could be it; the nearest name is offered.
    """
    everything = [_bare(each) for each in _unsplit(net.layer)]
    layers = [each for each in everything if _is_trained(each)]
    image, own = _image_and_what_it_makes(layers, where)
    last = _last_layer(layers, own, where, layer)
    scores, after = _behind(own, last)
    kept = _leading_to(own, scores, (after or [last])[-1])
    names = {each.name for each in kept}
    with_twins = [each for each in everything if each.name in names]  # TEST may have its own
    transform, mirror = _transform(net.layer)
    return Trunk(
        *(net.name, with_twins, image, scores, last.name, [each.name for each in after]),
        *(transform, mirror),
    )


def _bare(layer: LayerParameter) -> LayerParameter:
    """Return a copy without weights and without the phase of the net it was saved from."""
    copy = LayerParameter()
    copy.CopyFrom(layer)
    del copy.blobs[:]
    copy.ClearField("phase")
    return copy


def _unsplit(layers: Iterable[LayerParameter]) -> list[LayerParameter]:
    """Return the layers without Split layers, which a net gets anew when it is built."""
    names: dict[str, str] = {}
    result = []
    for layer in layers:
        copy = LayerParameter()
        copy.CopyFrom(layer)
        copy.bottom[:] = [names.get(bottom, bottom) for bottom in layer.bottom]
        if layer.type == "Split":
            names.update((top, copy.bottom[0]) for top in layer.top)
        else:
            result.append(copy)
    return result


def _is_trained(layer: LayerParameter) -> bool:
    state = caffe_pb2.NetState(phase=caffe_pb2.TRAIN)
    return not why_left_out(Node(layer, [], [], ""), state)


def _image_and_what_it_makes(
    layers: Sequence[LayerParameter], where: str
) -> tuple[str, list[LayerParameter]]:
    """Return the blob with the images, and the layers that depend on nothing else."""
    tops = dict.fromkeys(top for each in layers if not each.bottom for top in each.top)
    fed = {top: _made_of(layers, top) for top in tops}
    images = [top for top, made in fed.items() if any(each.type in SCORING for each in made)]
    if not images:
        raise NetError(
            f"{where}: no InnerProduct or Convolution layer depends on images alone, so there is "
            f"nothing to fine-tune"
        )
    if len(images) > 1:
        raise NetError(f"{where}: several inputs are images: {', '.join(images)}; expected one")
    return images[0], fed[images[0]]


def _made_of(layers: Sequence[LayerParameter], source: str) -> list[LayerParameter]:
    """Return the layers all of whose bottoms come from one blob."""
    known = {source}
    made = []
    for layer in layers:
        if layer.bottom and known.issuperset(layer.bottom):
            made.append(layer)
            known.update(layer.top)
        elif source not in layer.top:
            known.difference_update(layer.top)
    return made


def _reading(layers: Sequence[LayerParameter], layer: LayerParameter) -> list[LayerParameter]:
    """Return the layers behind one that depend on it."""
    start = next(i for i, each in enumerate(layers) if each is layer) + 1
    known = set(layer.top)
    found = []
    for each in layers[start:]:
        if known.intersection(each.bottom):
            found.append(each)
            known.update(each.top)
        else:
            known.difference_update(each.top)
    return found


def _last_layer(
    layers: Sequence[LayerParameter], own: Sequence[LayerParameter], where: str, name: str
) -> LayerParameter:
    """Return the layer whose outputs are the classes."""
    ends, judged = [], []
    for layer in own:
        readers = _reading(layers, layer)
        if layer.type in SCORING and not any(each.type in SCORING for each in readers):
            ends.append(layer)
            if any(each.type in JUDGES for each in readers):
                judged.append(layer)
    if not name:
        # Of several, further outputs branch off earlier than the one that matters.
        candidates = (judged or ends)[::-1]
        return max(candidates, key=lambda layer: len(_leading_to(own, layer.top[0], layer)))
    names = [each.name for each in ends]
    if name not in names:
        raise UsageError(
            f"'{name}' is no last layer of {where}{did_you_mean(name, names)} "
            f"(possible: {', '.join(names)})"
        )
    return ends[names.index(name)]


def _behind(
    own: Sequence[LayerParameter], last: LayerParameter
) -> tuple[str, list[LayerParameter]]:
    """Follow the last layer's outputs to where they are judged."""
    scores, after = last.top[0], []
    for layer in _reading(own, last):
        if layer.type in JUDGES:
            break
        if scores in layer.bottom and len(layer.top) == 1:
            after.append(layer)
            scores = layer.top[0]
    return scores, after


def _leading_to(
    own: Sequence[LayerParameter], scores: str, end: LayerParameter
) -> list[LayerParameter]:
    """Return the layers that the scores depend on."""
    stop = next(i for i, each in enumerate(own) if each is end) + 1
    wanted = {scores}
    kept = []
    for layer in reversed(own[:stop]):
        if wanted.intersection(layer.top):
            kept.append(layer)
            wanted.update(layer.bottom)
    return kept[::-1]


def _transform(layers: Iterable[LayerParameter]) -> tuple[TransformationParameter, bool]:
    """Return how test images are prepared, and whether training images are mirrored."""
    sources = [each for each in layers if not each.bottom and each.HasField("transform_param")]
    result = TransformationParameter()
    for each in sources:
        if not each.include or any(rule.phase == caffe_pb2.TEST for rule in each.include):
            result.CopyFrom(each.transform_param)
    if sources and not result.ListFields():
        result.CopyFrom(sources[0].transform_param)
    result.ClearField("mirror")
    return result, any(each.transform_param.mirror for each in sources)
