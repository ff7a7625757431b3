"""Tell what images show: the best classes of a trained net.

protocaffe classify IMAGE... --model=MODEL takes image files. MODEL is a folder with
deploy.prototxt and, as far as they are there, train_val.prototxt (mean and scale of its test data
are used), labels.txt (or that in the test database) and a caffemodel (the newest); or the name of
a model of the zoo; or a deploy prototxt, for which --weights is needed and --mean, --scale and
--labels tell the rest. Images get the size of those in the test database or of the
mean image, as far as that is there, or a seventh more than a large net's input; then the centre is
cut out.
"""

from __future__ import annotations

import csv
import json
import sys
from argparse import Namespace
from collections.abc import Iterator

from protocaffe.classify import Guess, ImageClassifier, add_mean, find_files, read_names
from protocaffe.cli.common import ENGINE, log_warnings_only
from protocaffe.cli.flags import Flag
from protocaffe.errors import UsageError
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2

FLAGS = [
    Flag("images", "the image files", required=True, positional=True, many=True),
    Flag("model", "a model's folder, its name in the zoo, or its deploy prototxt", required=True),
    Flag("weights", "the caffemodel, if it is not in the folder"),
    Flag("labels", "the names of the classes, one per line"),
    Flag("mean", "a mean file (.binaryproto, .npy), or values such as 104,117,123 (BGR)"),
    Flag("scale", "factor after the mean is taken off; 0 for the model's own", 0.0),
    Flag("resize", "size before the centre is cut out, such as 256 or 240,320 (height, width)"),
    Flag("top_k", "how many classes to print per image", 5, at_least=1),
    Flag("json", "print JSON", default=False),
    Flag("csv", "print CSV", default=False),
    ENGINE,
]


def run(flags: Namespace) -> int:
    """Classify as the flags say."""
    if flags.json and flags.csv:
        raise UsageError("--json and --csv exclude each other")
    log_warnings_only()
    classifier = _classifier(flags)
    results = zip(flags.images, classifier.classify(flags.images, flags.top_k), strict=True)
    if flags.json:
        _print_json(results)
    elif flags.csv:
        _print_csv(results)
    else:
        _print_text(results)
    return 0


def _classifier(flags: Namespace) -> ImageClassifier:
    files = find_files(flags.model)
    weights, labels = flags.weights or files.weights, flags.labels or files.labels
    if not weights:
        raise UsageError(
            f"there are no weights beside '{files.deploy}'; name them with --weights "
            f"('protocaffe zoo download' gets published ones, readme.md tells how to train others)"
        )
    if flags.mean:
        add_mean(files.transform, flags.mean)
    if flags.scale:
        files.transform.scale = flags.scale
    net = Net(files.deploy, caffe_pb2.TEST, weights=weights, engine=flags.engine or None)
    names = read_names(labels) if labels else []
    return ImageClassifier(
        net, files.transform, size=_size(flags.resize) or files.size, names=names
    )


def _size(flag: str) -> tuple[int, int] | None:
    if not flag:
        return None
    try:
        numbers = [int(each) for each in flag.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or min(numbers) < 1:
        raise UsageError(f"--resize: expected a size such as 256 or 240,320, got '{flag}'")
    return numbers[0], numbers[-1]


Results = Iterator[tuple[str, list[Guess]]]


def _print_text(results: Results) -> None:
    for image, guesses in results:
        print(image)
        for guess in guesses:
            print(f"  {guess.score:8.4f}  {guess.name or f'class {guess.label}'}")


def _print_csv(results: Results) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "rank", "label", "name", "score"])
    for image, guesses in results:
        for rank, guess in enumerate(guesses, 1):
            writer.writerow([image, rank, guess.label, guess.name, guess.score])


def _print_json(results: Results) -> None:
    found = [
        {"image": image, "classes": [vars(guess) for guess in guesses]}
        for image, guesses in results
    ]
    print(json.dumps(found, indent=2))
