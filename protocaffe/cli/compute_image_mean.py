"""Average the images of a database into a file for transform_param's mean_file.

protocaffe compute_image_mean DB [OUT] writes OUT, if it is given, and prints the mean of every
channel, to be used as mean_value. All images must have one size.
"""

from __future__ import annotations

from argparse import Namespace

from protocaffe.cli.counting import counting_progress
from protocaffe.cli.flags import Flag
from protocaffe.data.database import open_database
from protocaffe.data.mean import channel_means, image_mean, write_mean
from protocaffe.log import log, number

FLAGS = [
    Flag("db", "the database", required=True, positional=True),
    Flag("out", "the file to write, such as mean.binaryproto", positional=True),
    Flag("backend", "kind of database", default="lmdb", choices=("lmdb", "leveldb")),
]


def run(flags: Namespace) -> int:
    """Compute the mean as the flags say."""
    with open_database(flags.db, flags.backend) as database:
        log.info("Starting iteration")
        with counting_progress(len(database)) as progress:
            mean = image_mean(database, progress)
    if flags.out:
        log.info("Write to %s", flags.out)
        write_mean(flags.out, mean)
    log.info("Number of channels: %d", len(mean))
    for channel, value in enumerate(channel_means(mean)):
        log.info("mean_value channel [%d]: %s", channel, number(value))
    return 0
