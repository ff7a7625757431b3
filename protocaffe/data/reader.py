"""Many image files read by threads, in order, with an account of those that are bad."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from protocaffe.data.entries import Entry
from protocaffe.data.prefetch import ordered_map
from protocaffe.errors import DataError
from protocaffe.log import log

CHUNK = 16
"""Images per piece of work for a thread; few, as large ones take much memory."""
JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"

R = TypeVar("R")
Progress = Callable[[int], None]
"""Called now and then with the number of files done so far."""


class ImageError(DataError):
    """A file that is missing or no whole image; the message says which of these."""


@dataclass
class Conversion:
    """What came of a conversion: how many images were written and which files were not."""

    written: int = 0
    skipped: list[str] = field(default_factory=list)


class ImageReader(Generic[R]):
    """Runs a function over image files in threads, and accounts for those that it cannot read.

    Args:
        root: put in front of every path as it is.
        entries: the images.
        function: of the path and the label of an image; raises ImageError.
        strict: whether to stop at a file that cannot be read.
        threads: how many; see :func:`~protocaffe.data.prefetch.default_threads`.

    Attributes:
        conversion: what has come of it so far.

    Raises:
        DataError: there are no entries.
    """

    def __init__(
        self,
        root: str,
        entries: Sequence[Entry],
        function: Callable[[str, int], R],
        *,
        strict: bool = False,
        threads: int | None = None,
    ) -> None:
        if not entries:
            raise DataError("there are no images to convert")
        self._root = root
        self._entries = entries
        self._function = function
        self.conversion = Conversion()
        self._strict = strict
        self._threads = threads

    def results(
        self, progress: Progress | None = None
    ) -> Generator[tuple[int, Entry, R], None, None]:
        """Yield the number of each entry that can be read, the entry, and what comes of it.

        Args:
            progress: called now and then with the number of files done so far.

        Raises:
            DataError: a file cannot be read, if that matters, or none at all.
        """
        chunks = [self._entries[i : i + CHUNK] for i in range(0, len(self._entries), CHUNK)]
        number = 0
        with closing(ordered_map(self._run, chunks, self._threads)) as done:
            for chunk, values in zip(chunks, done, strict=True):
                for entry, value in zip(chunk, values, strict=True):
                    if isinstance(value, ImageError):
                        self._skip(entry, value)
                    else:
                        self.conversion.written += 1
                        yield number, entry, value
                    number += 1
                if progress:
                    progress(number)
        if not self.conversion.written:
            raise DataError(self._nothing_readable())

    def _run(self, chunk: Sequence[Entry]) -> list[R | ImageError]:
        return [self._run_one(entry) for entry in chunk]

    def _run_one(self, entry: Entry) -> R | ImageError:
        try:
            return self._function(self._root + entry.path, entry.label)
        except ImageError as why:
            return why

    def _skip(self, entry: Entry, why: ImageError) -> None:
        file = self._root + entry.path
        if self._strict:
            raise DataError(f"{place(entry)}image '{file}': {why}")
        # Caffe's words, and what it does not say
        log.error("Could not open or find file %s (%s%s)", file, place(entry), why)
        self.conversion.skipped.append(file)

    def _nothing_readable(self) -> str:
        root, first = self._root, self._entries[0].path
        message = f"none of the {len(self._entries)} files could be read, such as '{root + first}'"
        if root and not root.endswith("/") and os.path.isdir(root):
            message += f"; the root '{root}' is put in front as it is: end it with a slash"
        return message


def read_image(path: str) -> bytes:
    """Return the bytes of an image file.

    Raises:
        ImageError: it cannot be opened, or it is a JPEG file that was cut off, of which some
            decoders make an image that is gray in its lower part.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            content = file.read()
    except OSError as error:
        raise ImageError(error.strerror) from None
    if content.startswith(JPEG_START) and content.rfind(JPEG_END) < content.rfind(JPEG_SCAN):
        raise ImageError("the JPEG file is cut off")
    return content


def place(entry: Entry) -> str:
    """Return how a message about an image begins: the line that names it, if there is one."""
    return f"{entry.where}: " if entry.where else ""
