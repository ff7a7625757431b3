"""The folder that fine-tuning works in: databases, prototxts, class names, a readme."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from google.protobuf.message import Message

from protocaffe.blob import Blob
from protocaffe.data.aside import FolderAside
from protocaffe.data.convert import convert_images
from protocaffe.data.database import open_database
from protocaffe.data.mean import channel_means, image_mean
from protocaffe.data.reader import Progress
from protocaffe.errors import FileError, NetError, UsageError, WeightsError
from protocaffe.finetune.images import Images, check_readable
from protocaffe.finetune.origin import Origin
from protocaffe.finetune.preparation import Preparation
from protocaffe.finetune.texts import (
    TEST_BATCH,
    Recipe,
    deployed,
    freeze,
    solver_settings,
    trained,
    with_new_head,
)
from protocaffe.finetune.trunk import SCORING, Trunk
from protocaffe.log import log, only_warnings
from protocaffe.proto import caffe_pb2
from protocaffe.proto.caffe_pb2 import NetState, TransformationParameter
from protocaffe.proto.files import StrPath
from protocaffe.proto.stored import stored_layers
from protocaffe.proto.text import format_text
from protocaffe.scaffold import build_scaffold
from protocaffe.weights import match_layers
from protocaffe.zoo.catalogue import README

LABELS = "labels.txt"
MEAN = "mean.binaryproto"


def make_folder(
    out: StrPath,
    origin: Origin,
    images: Images,
    preparation: Preparation,
    recipe: Recipe,
    *,
    outputs: int = 0,
    suffix: str = "new",
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write everything that ``protocaffe train`` needs; the folder appears when it is complete.

    Args:
        out: the folder.
        origin: the model to begin with.
        images: to learn from and to test on.
        preparation: what is done to them.
        recipe: how to train.
        outputs: of the net; 0 for one per class.
        suffix: what the name of the last layer ends with from now on.
        force: replace a folder that is there.
        progress: called now and then with the number of images that are in a database.

    Returns:
        The solver's prototxt.

    Raises:
        ProtocaffeError: model, weights and images do not fit together, or something cannot be
            read or written.
    """
    folder = Path(out)
    outputs = outputs or len(images.classes)
    if outputs < len(images.classes):
        raise UsageError(f"{outputs} output(s) are too few for {len(images.classes)} classes")
    trunk = with_new_head(origin.trunk, suffix, outputs, recipe.lr_mult)
    _fit(trunk, origin, preparation, outputs, recipe)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FolderAside(folder, force=force) as aside:
            place = Path(aside.folder)
            counts = _write_databases(place, images, preparation, progress)
            transform = _write_mean(place, folder, preparation)
            nets = (
                trained(
                    trunk,
                    folder,
                    transform,
                    preparation.mirror,
                    (min(recipe.batch_size, counts[0]), min(TEST_BATCH, counts[1])),
                ),
                deployed(trunk, (preparation.channels, *preparation.size)),
            )
            weights = str(origin.weights.resolve()) if origin.weights else ""
            solver = solver_settings(recipe, origin.solver, folder, counts, weights)
            _write(place / "train_val.prototxt", "For training and testing.", nets[0])
            _write(place / "deploy.prototxt", "For use: probabilities of the classes.", nets[1])
            _write(place / "solver.prototxt", _how_to(folder), solver)
            (place / LABELS).write_bytes((place / "train_lmdb" / LABELS).read_bytes())
            (place / README).write_text(_readme(folder, origin, images, counts, solver.max_iter))
    except OSError as error:
        raise FileError(f"{folder}: cannot be written: {error.strerror}") from None
    return folder / "solver.prototxt"


def _fit(
    trunk: Trunk, origin: Origin, preparation: Preparation, outputs: int, recipe: Recipe
) -> None:
    """See to it that images, net and weights belong together; freeze layers if wanted."""
    net = deployed(trunk, (preparation.channels, *preparation.size))
    state = NetState(phase=caffe_pb2.TEST)
    with only_warnings():
        made = build_scaffold(net, state)
    with closing(made) as scaffold:
        shape = scaffold.assembly.blobs[trunk.scores].shape
        if math.prod(shape[1:]) != outputs:
            height, width = preparation.size
            raise NetError(
                f"{origin.name}: layer '{trunk.last}' gives {math.prod(shape[2:])} scores per "
                f"class for an image of {height}x{width}, not one; give another --size"
            )
        params = scaffold.assembly.params
        if recipe.freeze:
            freeze(trunk, params)
        else:
            _warn_of_still_layers(trunk)
        if origin.weights is not None:
            _check_weights(origin.weights, trunk, params, origin.name)


def _check_weights(
    file: Path, trunk: Trunk, params: Mapping[str, Sequence[Blob]], model: str
) -> None:
    with stored_layers(file) as layers:
        matching = match_layers(layers, params)
        stored = [layer.name for layer in layers if layer.blobs]
    if matching.refused:
        refused = "\n".join(f"{file}: {sentence}" for sentence in matching.refused)
        raise WeightsError(f"{refused}\nThese seem to be weights of another net than {model}")
    if not set(stored).intersection(matching.loaded):
        raise WeightsError(
            f"{file}: has weights for none of the layers of {model}; are they another net's? "
            f"It has: {', '.join(stored)}"
        )
    missing = [name for name in matching.fresh if name not in (trunk.last, *trunk.after)]
    if missing:
        log.warning("%s has no weights for: %s", file, ", ".join(missing))


def _warn_of_still_layers(trunk: Trunk) -> None:
    still = [
        layer.name
        for layer in trunk.layers
        if layer.type in SCORING and layer.param and not any(s.lr_mult for s in layer.param)
    ]
    if still:
        log.warning("These layers will not learn (lr_mult: 0 in the model): %s", ", ".join(still))


def _write_databases(
    folder: Path, images: Images, preparation: Preparation, progress: Progress | None
) -> tuple[int, int]:
    """Write both databases; return how many images each has."""
    counts: list[int] = []
    for name, part in (("train", images.train), ("test", images.test)):
        seen = len(images.train.entries) if counts else 0

        def report(done: int, seen: int = seen) -> None:
            if progress:
                progress(seen + done)

        conversion = convert_images(
            part.root,
            part.entries,
            folder / f"{name}_lmdb",
            preparation.options,
            class_names=images.classes,
            progress=report,
        )
        check_readable(part, conversion.skipped, images.classes)
        if conversion.skipped:
            log.warning("%d of %d files were skipped.", len(conversion.skipped), len(part.entries))
        counts.append(conversion.written)
    return counts[0], counts[1]


def _write_mean(folder: Path, final: Path, preparation: Preparation) -> TransformationParameter:
    """Copy the mean image, or take the mean of the training images; return the transformation."""
    transform = TransformationParameter()
    transform.CopyFrom(preparation.transform)
    if preparation.mean_file:
        shutil.copyfile(preparation.mean_file, folder / MEAN)
        transform.mean_file = str(final / MEAN)
    elif preparation.own_mean:
        with open_database(folder / "train_lmdb") as database:
            means = channel_means(image_mean(database))
        transform.mean_value.extend(round(value, 4) for value in means)
    return transform


def _write(path: Path, comment: str, message: Message) -> None:
    lines = "".join(f"# {line}\n" for line in comment.splitlines())
    path.write_text(lines + format_text(message), encoding="utf-8")


def _how_to(folder: Path) -> str:
    return f"Run it again: protocaffe train --solver={folder / 'solver.prototxt'}"


def _readme(
    folder: Path, origin: Origin, images: Images, counts: tuple[int, int], iterations: int
) -> str:
    start = f"the weights of {origin.weights.name}" if origin.weights else "random weights"
    return f"""---
name: {folder.name}
caffemodel: {folder.name}_iter_{iterations}.caffemodel
---

{origin.name}, fine-tuned to tell {len(images.classes)} classes apart (`{LABELS}`), beginning with
{start}: {counts[0]} images of `{images.train.root}` to learn from, {counts[1]} of
`{images.test.root}` to test on.

    protocaffe train --solver={folder}/solver.prototxt
"""
