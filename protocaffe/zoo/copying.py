"""A model of one's own, begun as a copy of another."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from protocaffe.data.aside import FolderAside
from protocaffe.errors import FileError
from protocaffe.proto.files import DOWNLOADED, StrPath
from protocaffe.proto.text import read_text
from protocaffe.zoo.catalogue import Model
from protocaffe.zoo.download import weights_path

EXTRAS = ("*.binaryproto", "*.txt", DOWNLOADED)
"""What goes along besides the texts and the weights: means, class names, and the mark."""


def copy_model(model: Model, folder: StrPath, *, force: bool = False) -> Path:
    """Copy a model's texts, mean and weights into a new folder.

    Where its texts speak of files in ``models/<name>``, those of the copy speak of the new
    folder. Databases and snapshots stay behind.

    Args:
        model: from the catalogue, or of any folder with a readme.md.
        folder: made for it.
        force: replace a folder that is there.

    Returns:
        The new folder.

    Raises:
        ProtocaffeError: the folder is there, or a file cannot be read or written.
    """
    target = Path(folder)
    old = "|".join(re.escape(name) for name in {f"models/{model.id}", str(model.folder)})
    places = re.compile(rf"(?<![\w./-])(?:{old})(?![\w-])")
    others = {path for pattern in EXTRAS for path in model.folder.glob(pattern)}
    if model.caffemodel and weights_path(model).is_file():
        others.add(weights_path(model))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FolderAside(target, force=force) as aside:
            for path in model.files:
                text = places.sub(lambda _: str(target), read_text(path))
                Path(aside.folder, path.name).write_text(text, encoding="utf-8")
            for path in others:
                shutil.copyfile(path, os.path.join(aside.folder, path.name))
    except OSError as error:
        raise FileError(f"{folder}: cannot be written: {error.strerror}") from None
    return target
