"""Score windows of images, as R-CNN does.

protocaffe detect INPUT_FILE OUTPUT_FILE reads windows from a CSV file with the columns filename,
ymin, xmin, ymax and xmax, and writes them with a column of scores per class (class0, class1 ...).
With --crop_mode=selective_search, INPUT_FILE is a list of image files, one a line, and the windows
come from the package selective_search_ijcv_with_python, which needs MATLAB.
"""

from __future__ import annotations

import os
import time
from argparse import Namespace

from protocaffe import io
from protocaffe.cli.common import log_warnings_only, whole_numbers
from protocaffe.cli.flags import Flag
from protocaffe.detector import Detection, Detector, read_windows, write_detections
from protocaffe.engines import get_engine
from protocaffe.errors import FileError, UsageError
from protocaffe.proto.text import read_text
from protocaffe.settings import set_mode_gpu

FLAGS = [
    Flag("input_file", "windows (.csv) or image files (.txt)", required=True, positional=True),
    Flag("output_file", "the CSV file to write", required=True, positional=True),
    Flag("model_def", "the deploy prototxt", required=True),
    Flag("pretrained_model", "the caffemodel", required=True),
    Flag(
        "crop_mode",
        "where windows come from",
        default="list",
        choices=("list", "selective_search"),
    ),
    Flag("gpu", "run on the GPU", default=False),
    Flag("mean_file", "the mean to subtract, .npy or .binaryproto"),
    Flag("input_scale", "factor after the mean is subtracted", default=1.0),
    Flag("raw_scale", "factor before that, for images in 0..1", default=255.0),
    Flag("channel_swap", "order of the channels; 2,1,0 makes RGB images BGR", default="2,1,0"),
    Flag("context_pad", "pixels of the input that show surroundings, on each side", default=16),
    Flag("force", "replace OUTPUT_FILE if it exists", default=False),
]


def run(flags: Namespace) -> int:
    """Detect as the flags say."""
    if not flags.output_file.lower().endswith(".csv"):
        raise UsageError(
            f"{flags.output_file}: expected a name that ends in .csv "
            f"(pandas.read_csv reads it with index_col='filename')"
        )
    if os.path.exists(flags.output_file) and not flags.force:
        raise FileError(f"{flags.output_file} exists already; --force replaces it")
    if flags.gpu:
        get_engine("cuda")  # says what is missing
        set_mode_gpu()
    log_warnings_only()
    detector = Detector(
        flags.model_def,
        flags.pretrained_model,
        mean=io.load_array(flags.mean_file) if flags.mean_file else None,
        input_scale=flags.input_scale,
        raw_scale=flags.raw_scale,
        channel_swap=whole_numbers(flags.channel_swap, "channel_swap"),
        context_pad=flags.context_pad,
    )
    start = time.perf_counter()
    detections = _detect(detector, flags)
    print(f"Processed {len(detections)} windows in {time.perf_counter() - start:.3f} s.")
    write_detections(flags.output_file, detections)
    print(f"Saved to {flags.output_file}.")
    return 0


def _detect(detector: Detector, flags: Namespace) -> list[Detection]:
    if flags.crop_mode == "list":
        return detector.detect_windows(read_windows(flags.input_file))
    names = [line.strip() for line in read_text(flags.input_file).splitlines() if line.strip()]
    return detector.detect_selective_search(names)
