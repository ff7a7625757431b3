"""Store the scores of images: pycaffe's program; ``protocaffe classify`` names what images show.

INPUT_FILE is an image, a folder of images, or a .npy file with an array of images; OUTPUT_FILE is
a .npy file that gets an array with a row of scores per image.
"""

import argparse
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np

from protocaffe import io
from protocaffe.classifier import Classifier
from protocaffe.cli.common import log_warnings_only, whole_numbers
from protocaffe.errors import FileError, ProtocaffeError, UsageError
from protocaffe.proto.files import write_atomic

CAFFENET = Path(__file__).parents[1] / "models" / "bvlc_reference_caffenet"


def parse() -> argparse.Namespace:
    """Return the flags, which have pycaffe's names and defaults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("input_file")
    add("output_file")
    add("--model_def", default=CAFFENET / "deploy.prototxt", help="(%(default)s)")
    add(
        "--pretrained_model",
        default=CAFFENET / "bvlc_reference_caffenet.caffemodel",
        help="(%(default)s)",
    )
    add("--gpu", action="store_true", help="not in this version: it runs on the CPU")
    add("--center_only", action="store_true", help="score the centre crop, not ten crops")
    add("--images_dim", default="256,256", help="size before cropping: height,width (%(default)s)")
    add("--mean_file", help="the mean to subtract, .npy or .binaryproto")
    add("--input_scale", type=float, help="factor after the mean is subtracted")
    add("--raw_scale", type=float, default=255.0, help="factor before that (%(default)s)")
    add("--channel_swap", default="2,1,0", help="2,1,0 makes RGB images BGR (%(default)s)")
    add("--ext", default="jpg", help="ending of the images in a folder (%(default)s)")
    add("--force", action="store_true", help="replace OUTPUT_FILE if it exists")
    return parser.parse_args()


def load_inputs(path: Path, ext: str) -> list[io.Floats]:
    """Return the images that a path stands for, with a line about it."""
    if path.suffix == ".npy":
        print(f"Loading file: {path}")
        return list(io.load_array(path))
    files = sorted(path.glob(f"*.{ext}")) if path.is_dir() else [path]
    if not files:
        raise FileError(f"{path}: has no images that end in .{ext}; --ext=... names another ending")
    print(f"Loading {'folder' if path.is_dir() else 'file'}: {path}")
    return [io.load_image(file) for file in files]


def run(given: argparse.Namespace) -> None:
    """Classify as the flags say."""
    if given.gpu:
        raise UsageError("--gpu: this version has no GPU engine; leave it out to run on the CPU")
    out = Path(given.output_file).with_suffix(".npy")
    if out.exists() and not given.force:
        raise FileError(f"{out} exists already; --force replaces it")
    log_warnings_only()
    classifier = Classifier(
        given.model_def,
        given.pretrained_model,
        image_dims=whole_numbers(given.images_dim, "images_dim"),
        mean=io.load_array(given.mean_file) if given.mean_file else None,
        input_scale=given.input_scale,
        raw_scale=given.raw_scale,
        channel_swap=whole_numbers(given.channel_swap, "channel_swap"),
    )
    images = load_inputs(Path(given.input_file).expanduser(), given.ext)
    print(f"Classifying {len(images)} inputs.")
    start = time.perf_counter()
    scores = classifier.predict(images, oversample=not given.center_only)
    print(f"Done in {time.perf_counter() - start:.2f} s.")
    content = BytesIO()
    np.save(content, scores)
    write_atomic(out, content.getvalue())
    print(f"Saved results into {out}")


if __name__ == "__main__":
    try:
        run(parse())
    except ProtocaffeError as error:
        sys.exit(str(error))
