"""A model's published weights: where they are, and how they get into its folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote, urlsplit

from protocaffe.errors import FileError, UsageError
from protocaffe.proto.files import StrPath
from protocaffe.proto.stored import is_hdf5, stored_layers
from protocaffe.zoo.catalogue import README, Model, find_model, models_folder, read_readme
from protocaffe.zoo.fetch import NotFetchedError, Progress, fetch

MIRROR = "PROTOCAFFE_ZOO"
"""Environment variable: an address or a folder that is tried before the published address."""


def download_weights(
    model: Model, *, force: bool = False, progress: Progress | None = None
) -> tuple[Path, str]:
    """Get the weights that a model's readme names, to :func:`weights_path`.

    Args:
        model: from the catalogue, or :func:`open_model`.
        force: replace a file of that name that is another one.
        progress: see :data:`protocaffe.zoo.fetch.Progress`.

    Returns:
        The file, and the address it came from: empty if it was there already.

    Raises:
        FileError: the readme names no weights or no address, or what
            :func:`protocaffe.zoo.fetch.fetch` raises.
    """
    path = weights_path(model)
    addresses = weights_addresses(model)
    if not addresses and not path.exists():
        raise FileError(
            f"{model.folder / README}: names no caffemodel_url, so there is nothing to download; "
            f"the readme may tell how to train the model"
        )
    check = None if is_hdf5(path) else _check_model
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{path.parent}: cannot be made: {error.strerror}") from None
    try:
        return path, fetch(
            addresses, path, sha1=model.sha1, check=check, force=force, progress=progress
        )
    except NotFetchedError as error:
        raise NotFetchedError(f"{error}\n{_way_out(model, path)}") from None


def weights_path(model: Model) -> Path:
    """Return where a model's weights lie, or would lie: in its folder.

    If a model comes with protocaffe and its folder cannot be written, or the weights are there
    already, that is a folder of the user's (:func:`cache_folder`).

    Raises:
        FileError: its readme names none, or something that is no plain file name.
    """
    name = model.caffemodel
    if not re.fullmatch(r"[^/\\\0.][^/\\\0]*", name):
        raise FileError(
            f"{model.folder / README}: expected 'caffemodel: NAME.caffemodel', a file name, in "
            f"the front matter; " + (f"got '{name}'" if name else "there is none")
        )
    beside = model.folder / name
    if beside.exists() or model.folder.parent.resolve() != models_folder():
        return beside
    cached = cache_folder() / model.id / name
    return cached if cached.exists() or not os.access(model.folder, os.W_OK) else beside


def cache_folder() -> Path:
    """Return where weights go if protocaffe is installed where the user may not write."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "protocaffe", "models")


def weights_addresses(model: Model) -> list[str]:
    """Return where a model's weights may be: at the mirror, if one is set, then as published.

    A mirror has the files side by side, or in folders named as the models, as ``models/`` does.
    """
    mirror = os.environ.get(MIRROR, "").rstrip("/")
    names = [model.caffemodel, f"{model.id}/{model.caffemodel}"] if mirror else []
    if urlsplit(mirror).scheme:
        names = [quote(name) for name in names]
    return [f"{mirror}/{name}" for name in names] + ([model.url] if model.url else [])


def open_model(name_or_folder: StrPath) -> Model:
    """Return a model of the zoo by its name, or the one in a folder with a readme.md.

    Raises:
        FileError: the folder's readme is missing or has no front matter.
        UsageError: there is neither such a model nor such a folder; the nearest name is offered.
    """
    folder = Path(name_or_folder)
    if folder.is_dir():
        return read_readme(folder / README)
    if len(folder.parts) > 1:
        raise UsageError(f"there is no folder '{folder}'; expected one, or the name of a model")
    return find_model(str(name_or_folder))


def _check_model(path: str) -> None:
    with stored_layers(path):
        pass


def _way_out(model: Model, path: Path) -> str:
    return (
        f"Put the file there yourself, or set {MIRROR} to a folder or an address that has "
        f"{path.name} or {model.id}/{path.name}"
    )
