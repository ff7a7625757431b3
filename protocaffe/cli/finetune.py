"""Fine-tune a trained net to other classes, from a folder with one folder of images per class.

protocaffe finetune --model=cifar10_quick --data=photos takes photos/CLASS/*.jpg, or parts
photos/train/CLASS and photos/test/CLASS (or val), and makes a folder, photos_cifar10_quick: with
databases, train_val.prototxt, solver.prototxt, deploy.prototxt and labels.txt. It trains, then
prints how many test images are recognised and which classes are taken for which.

All files are ordinary ones: edit them and run protocaffe train --solver=FOLDER/solver.prototxt.
"""

from __future__ import annotations

import re
import shutil
from argparse import Namespace
from pathlib import Path

from protocaffe.cli import train
from protocaffe.cli.common import ENGINE
from protocaffe.cli.counting import counting_progress
from protocaffe.cli.flags import Flag, parse
from protocaffe.data.database import open_database
from protocaffe.errors import UsageError
from protocaffe.finetune.confusion import (
    accuracy,
    confusion_csv,
    count_confusions,
    describe_confusions,
)
from protocaffe.finetune.folder import LABELS, make_folder
from protocaffe.finetune.images import Images, find_images
from protocaffe.finetune.origin import read_origin
from protocaffe.finetune.preparation import choose_preparation
from protocaffe.finetune.texts import LABEL, Recipe
from protocaffe.log import log
from protocaffe.proto.files import write_atomic
from protocaffe.proto.text import read_net, read_solver

FLAGS = [
    Flag(
        "model",
        "a model of 'protocaffe zoo ls', its folder, prototxt or .caffemodel",
        required=True,
    ),
    Flag("data", "the folder with one folder of images per class", required=True),
    Flag("out", "the folder to make; by default named after data and model"),
    Flag("weights", "the caffemodel to begin with; by default the model's own"),
    Flag("scratch", "begin with random weights, at the model's rate, to compare", default=False),
    Flag("classes", "outputs of the net; 0: one per class", default=0, at_least=0),
    Flag("layer", "the layer to replace; by default the last one"),
    Flag("freeze", "let only the new layer learn: for very few images", default=False),
    Flag("iterations", "updates; 0: ten rounds, but 100 to 5000", default=0, at_least=0),
    Flag("batch_size", "images per update", default=32, at_least=1),
    Flag("base_lr", "learning rate; 0: a tenth of the model's own", default=0.0, at_least=0),
    Flag("lr_mult", "how many times faster the new layer learns; 0: ten", default=0.0, at_least=0),
    Flag("test_share", "share of images to test on, if there is no test folder", default=0.2),
    Flag("size", "of the net's input: NUMBER, or HEIGHT,WIDTH; by default the model's"),
    Flag("mean_value", "to take off each channel, such as 104,117,123; default: the model's"),
    Flag("scale", "factor on the pixels; by default the model's"),
    Flag("mirror", "mirror half of the training images (not for letters!)", default=False),
    Flag("seed", "of everything that is random", default=1, at_least=0),
    Flag("train", "train, too; --notrain only makes the folder", default=True),
    Flag("force", "replace the folder if it exists", default=False),
    ENGINE,
]


def run(flags: Namespace) -> int:
    """Fine-tune as the flags say."""
    if flags.scratch and flags.weights:
        raise UsageError("give --weights or --scratch, not both")
    if not 0 < flags.test_share < 1:
        raise UsageError(f"--test_share={flags.test_share}: expected a number between 0 and 1")
    origin = read_origin(flags.model, flags.weights, flags.layer, scratch=flags.scratch)
    preparation = choose_preparation(
        origin,
        _size(flags.size),
        _numbers("mean_value", flags.mean_value),
        next(iter(_numbers("scale", flags.scale)), None),
        flags.mirror,
    )
    images = find_images(flags.data, flags.test_share, flags.seed)
    data = re.sub(r"\W+", "_", Path(flags.data).resolve().name)
    log.info(
        "%d classes: %d images to learn from, %d to test on",
        *(len(images.classes), len(images.train.entries), len(images.test.entries)),
    )
    total = len(images.train.entries) + len(images.test.entries)
    with counting_progress(total) as progress:
        solver = make_folder(
            flags.out or f"{data}_{origin.name}",
            origin,
            images,
            preparation,
            _recipe(flags),
            outputs=flags.classes,
            suffix=data,
            force=flags.force,
            progress=progress,
        )
    log.info("Everything is ready in %s", solver.parent)
    return _train(solver, images, flags.engine) if flags.train else 0


def _recipe(flags: Namespace) -> Recipe:
    return Recipe(
        iterations=flags.iterations,
        batch_size=flags.batch_size,
        base_lr=flags.base_lr,
        lr_mult=flags.lr_mult or (1 if flags.scratch else 10),
        freeze=flags.freeze,
        seed=flags.seed,
    )


def _train(solver: Path, images: Images, engine: str) -> int:
    """Train, test, and print what came of it."""
    words = [f"--solver={solver}"] + ([f"--engine={engine}"] if engine else [])
    train.run(parse("protocaffe train", "", train.FLAGS, words))
    settings, _ = read_solver(solver)
    weights = f"{settings.snapshot_prefix}_iter_{settings.max_iter}.caffemodel"
    if not Path(weights).exists():
        print(f"Stopped early. To go on: protocaffe train --solver={solver} --snapshot=auto")
        return 0
    net, _ = read_net(settings.net)
    scores = net.layer[-1].bottom[0]
    tested = open_database(solver.parent / "test_lmdb")
    counts = count_confusions(settings.net, weights, scores, LABEL, len(tested), engine=engine)
    names = images.classes + [f"output {i}" for i in range(len(images.classes), len(counts))]
    table = solver.parent / "confusion.csv"
    write_atomic(table, confusion_csv(counts, names).encode())
    print(f"Accuracy: {100 * accuracy(counts):.2f} % of {counts.sum()} test images\n")
    width = shutil.get_terminal_size().columns
    print("\n".join(describe_confusions(counts, names, width)))
    print(f"\nThe net: {solver.parent}/deploy.prototxt, its weights: {weights}")
    print(f"The classes: {solver.parent / LABELS}; the whole table: {table}")
    return 0


def _size(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    numbers = [int(number) for number in _numbers("size", text)]
    if len(numbers) > 2 or min(numbers) < 1:
        raise UsageError(f"--size={text}: expected NUMBER or HEIGHT,WIDTH, in pixels")
    return numbers[0], numbers[-1]


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError:
        raise UsageError(f"--{name}={text}: expected numbers separated by commas") from None
