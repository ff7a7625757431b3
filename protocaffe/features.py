"""Values of a net's blobs, stored in databases: what ``extract_features`` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np

from protocaffe.blob import Blob
from protocaffe.data.writer import create_database
from protocaffe.errors import UsageError, did_you_mean
from protocaffe.log import log
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.files import StrPath

LOG_EVERY = 1000


def extract_features(
    net: Net,
    blobs: Sequence[str],
    databases: Sequence[StrPath],
    num_batches: int,
    *,
    backend: str = "lmdb",
    force: bool = False,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Run a net forward and store what its blobs hold, image by image, one database per blob.

    Keys are counters of ten digits, values Datums with ``float_data`` and without label. The
    databases appear when all is done: an error or Ctrl-C leaves nothing behind.

    Args:
        net: mostly of phase TEST, with a data layer.
        blobs: names of blobs of up to four axes, (num, channels, height, width); axes that a
            blob lacks are 1.
        databases: the folders to make, one per blob.
        num_batches: how often to run forward.
        backend: ``lmdb`` or ``leveldb``.
        force: whether to replace existing databases.
        progress: called with the number of batches done so far.

    Raises:
        UsageError: the net has no such blob, or the databases are not one each per blob.
        DataError: a database exists already or cannot be written.
    """
    _check(net, blobs, databases)
    counts = [0] * len(blobs)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(create_database(path, backend, force=force)) for path in databases
        ]
        log.info("Extracting Features")
        for batch in range(1, num_batches + 1):
            net.run_forward()
            for i, (name, writer) in enumerate(zip(blobs, writers, strict=True)):
                for value in _datums(net.blobs[name]):
                    writer.put(b"%010d" % counts[i], value)
                    counts[i] += 1
                    if counts[i] % LOG_EVERY == 0:
                        _log_count(counts[i], name)
            if progress:
                progress(batch)
    for name, count in zip(blobs, counts, strict=True):
        if count % LOG_EVERY:
            _log_count(count, name)
    log.info("Successfully extracted the features!")


def _check(net: Net, blobs: Sequence[str], databases: Sequence[StrPath]) -> None:
    if len(blobs) != len(databases) or len({str(path) for path in databases}) != len(databases):
        raise UsageError(
            f"every blob needs a database of its own; got {len(blobs)} blob(s) and the databases "
            f"{', '.join(map(str, databases))}"
        )
    for name in blobs:
        if name not in net.blobs:
            raise UsageError(
                f"the net has no blob '{name}'{did_you_mean(name, net.blobs)} "
                f"(it has: {', '.join(net.blobs)})"
            )
        if not 1 <= net.blobs[name].num_axes <= 4:
            raise UsageError(
                f"blob '{name}' has shape {net.blobs[name].shape}; only blobs of one to four axes "
                f"can be stored"
            )


def _datums(blob: Blob) -> list[bytes]:
    """Return one serialised datum per image."""
    rows = np.asarray(blob.data, np.float32).reshape(blob.num, -1).tolist()
    return [
        caffe_pb2.Datum(
            channels=blob.channels, height=blob.height, width=blob.width, float_data=row
        ).SerializeToString()
        for row in rows
    ]


def _log_count(count: int, name: str) -> None:
    log.info("Extracted features of %d query images for feature blob %s", count, name)
