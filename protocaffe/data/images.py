"""Image files named in a list: what an ImageData layer reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from protocaffe.data.batches import BatchFiller, shuffled_rounds
from protocaffe.data.datum import Array, decode_image, planar, resize_image
from protocaffe.data.entries import MAX_LABEL, read_numbered_list
from protocaffe.data.transformer import Transformer
from protocaffe.errors import DataError
from protocaffe.proto.files import StrPath


class ListedImage(NamedTuple):
    """An image of a list file: its path, its label, and which line names it."""

    path: str
    label: int
    line: int


class ImageList:
    """The images of a list file, over and over.

    Args:
        source: the list file, ``path label`` per line, split at the last space.
        root: put in front of every path as it is.
        shuffle: whether each round goes through the images in a new random order.
        seed: of those orders.

    Raises:
        DataError: the list cannot be read, is empty, or has a bad line.

    Attributes:
        source: see above.
        seed: see above; a new one holds for the next call of :meth:`rounds`.
    """

    def __init__(
        self, source: StrPath, root: str = "", *, shuffle: bool = False, seed: int = 0
    ) -> None:
        self.source = os.fspath(source)
        self.seed = seed
        self._shuffle = shuffle
        self._images = [
            ListedImage(root + entry.path, entry.label, line)
            for line, entry in read_numbered_list(source, least_label=-MAX_LABEL)
        ]

    def __len__(self) -> int:
        """The number of images in the list."""
        return len(self._images)

    def rounds(self, position: int = 0) -> Iterator[Iterator[ListedImage]]:
        """Yield the images over and over, one iterator per round.

        The order of a round follows from the seed and the number of the round alone. The first
        one begins where the image at ``position`` of the stream is.
        """
        images = self._images
        if self._shuffle:
            for order in shuffled_rounds(len(images), position, self.seed):
                yield (images[place] for place in order)
        yield iter(images[position % len(images) :])
        while True:
            yield iter(images)


class ImageFiller(BatchFiller[ListedImage]):
    """Fills batches from image files.

    Args:
        source: the list file's name, for messages.
        transformer: what to do with each image.
        seed: of the random choices, 0 to 2**64 - 1.
        color: True for three channels (BGR), False for one.
        size: height and width to resize to; None keeps the images' own.
    """

    def __init__(
        self,
        source: str,
        transformer: Transformer,
        seed: int,
        *,
        color: bool = True,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(transformer, seed)
        self.source = source
        self.color = color
        self.size = size

    def read(self, record: ListedImage) -> tuple[Array, int]:
        """Return the image, read from its file, and its label."""
        try:
            image = decode_image(read_file(record.path), color=self.color)
        except DataError as error:
            raise self.error(record, str(error)) from None
        if image is None:
            raise self.error(record, "is no image that OpenCV can read")
        if self.size:
            image = resize_image(image, *self.size)
        return planar(image), record.label

    def error(self, record: ListedImage, message: str) -> DataError:
        """Return an error that names the line of the list and the image."""
        return DataError(f"{self.source}:{record.line}: image '{record.path}': {message}")


def read_file(path: str) -> bytes:
    """Return a file's bytes.

    Raises:
        DataError: it cannot be read; the message does not name it.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror} (root_folder is put in front of the path as it is)"
        ) from None
