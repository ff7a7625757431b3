"""Models that people share as GitHub gists: a readme.md with Caffe's front matter, prototxts."""

from __future__ import annotations

import re
import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from protocaffe.data.aside import FolderAside
from protocaffe.errors import FileError, UsageError
from protocaffe.log import log
from protocaffe.proto.files import DOWNLOADED, StrPath
from protocaffe.zoo.catalogue import README
from protocaffe.zoo.fetch import NotFetchedError, fetch

HOST = "https://gist.github.com"
MAX_BYTES = 64 << 20
"""The largest gist that is unpacked; weights are never in gists."""

_GIST = re.compile(r"(?:https?://[^/]+/)?((?:[\w-]+/)?[0-9a-f]{5,40})/?", re.IGNORECASE)


def download_gist(gist: str, folder: StrPath = "models", *, host: str = HOST) -> Path:
    """Get a model's texts into a folder of their own, where Caffe's script puts them.

    The folder is called ``ID`` or ``USER-ID`` and gets a mark (:data:`DOWNLOADED`) because of
    which nothing in it can make us import code. It appears when it is complete.

    Args:
        gist: ``ID``, ``USER/ID``, or the gist's address.
        folder: where the folder goes; made if it is missing.
        host: of the gists.

    Returns:
        The new folder.

    Raises:
        UsageError: ``gist`` is no gist's name.
        FileError: the folder is there already, the gist cannot be had, or is no model.
    """
    match = _GIST.fullmatch(gist)
    if not match:
        raise UsageError(
            f"'{gist}' is no gist; expected ID, USER/ID or https://gist.github.com/..."
        )
    target = Path(folder, match[1].replace("/", "-"))
    if target.exists():
        raise FileError(f"{target}: is there already; move it away to download it anew")
    address = f"{host}/{match[1]}/download"
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with FolderAside(target) as aside:
            made = Path(aside.folder)
            archive = made / DOWNLOADED
            _fetch(address, archive, target)
            _unpack(archive, made, address)
            archive.write_text(f"{host}/{match[1]}\n")
    except OSError as error:
        raise FileError(f"{target}: cannot be written: {error.strerror}") from None
    if not (target / README).exists():
        log.warning("%s: the gist has no %s, so nothing is known of its weights", target, README)
    return target


def _fetch(address: str, archive: Path, target: Path) -> None:
    try:
        fetch([address], archive)
    except NotFetchedError as error:
        raise NotFetchedError(str(error).replace(str(archive), str(target))) from None


def _unpack(archive: Path, folder: Path, address: str) -> None:
    """Write a zip file's files side by side, whatever folders they are in there."""
    try:
        with zipfile.ZipFile(archive) as found:
            entries = [entry for entry in found.infolist() if not entry.is_dir()]
            size = sum(entry.file_size for entry in entries)
            if size > MAX_BYTES:
                raise FileError(f"{address}: holds {size} bytes; a model's texts are smaller")
            for entry in entries:
                name = PurePosixPath(entry.filename).name
                if name.startswith("."):
                    raise FileError(f"{address}: has a file '{name}'; models have no hidden files")
                with found.open(entry) as source, open(folder / name, "xb") as file:
                    shutil.copyfileobj(source, file)
    except FileExistsError as error:
        raise FileError(f"{address}: has two files named '{Path(error.filename).name}'") from None
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError):
        raise FileError(f"{address}: gave no zip file; is there such a gist?") from None
