"""Make squares of a folder of images: the shorter side is resized, the centre cropped.

--input_folder and --output_folder have the same folders and names inside. The output folder
appears when everything is done: an interrupted run leaves nothing behind.
"""

from __future__ import annotations

from argparse import Namespace

from protocaffe.cli.convert_imageset import warn_of_skipped
from protocaffe.cli.counting import counting_progress
from protocaffe.cli.flags import Flag
from protocaffe.data.entries import Entry, images_in
from protocaffe.data.thumbnails import LIBRARIES, listed_images, resize_and_crop
from protocaffe.errors import DataError
from protocaffe.log import log

FLAGS = [
    Flag("input_folder", "the folder of the images", required=True),
    Flag("output_folder", "the folder to make", required=True),
    Flag("output_side_length", "height and width of the squares", default=256, at_least=1),
    Flag("input", "a list of the images; default: all in the input folder"),
    Flag("image_lib", "what resizes", default="opencv", choices=LIBRARIES),
    Flag("num_clients", "how many work at once; 0: one per core", default=0, at_least=0),
    Flag("strict", "stop at a file that cannot be read, instead of skipping it", default=False),
    Flag("force", "replace the output folder if it exists", default=False),
]


def run(flags: Namespace) -> int:
    """Resize as the flags say."""
    if flags.input:
        entries = listed_images(flags.input, flags.input_folder)
    else:
        entries = [Entry(path, 0) for path in images_in(flags.input_folder)]
    if not entries:
        raise DataError(f"'{flags.input_folder}' has no images in it, or is no folder")
    log.info("A total of %d images.", len(entries))
    with counting_progress(len(entries)) as progress:
        result = resize_and_crop(
            flags.input_folder,
            entries,
            flags.output_folder,
            flags.output_side_length,
            library=flags.image_lib,
            strict=flags.strict,
            force=flags.force,
            threads=flags.num_clients or None,
            progress=progress,
        )
    warn_of_skipped(result)
    log.info("Wrote %d images to %s", result.written, flags.output_folder)
    return 0
