"""Which models there are: folders with prototxts and a readme.md that starts with facts.

Caffe's readmes start with a block of ``key: value`` lines between two lines of ``---``:
``name``, ``caffemodel``, ``caffemodel_url``, ``license``, ``sha1``, and ``caffe_commit`` or
``gist_id``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from protocaffe.errors import FileError, UsageError, near_or_all
from protocaffe.proto.files import StrPath
from protocaffe.proto.text import read_text

README = "readme.md"
FENCE = "---"
SHIPPED = ("*.prototxt", README)
"""What belongs to a model; the rest of its folder is what training and downloads write."""

CROP_MARGIN = 8 / 7
"""Images are made this much larger than the crops taken from them: 256 for crops of 224."""
PUBLISHED_MEANS = {"imagenet_mean.binaryproto": (104.0, 117.0, 123.0)}
"""What mean images that are not at hand are known to come to, per channel (BGR)."""

_FACT = re.compile(r"(\w+):(?:\s+(.*?))?\s*")


@dataclass(frozen=True)
class Model:
    """A model as its readme describes it.

    Attributes:
        id: the name of its folder, such as ``bvlc_googlenet``.
        folder: where it lies.
        facts: the front matter, key by key, as written.
        text: the readme below the front matter.
    """

    id: str
    folder: Path
    facts: Mapping[str, str]
    text: str

    @property
    def name(self) -> str:
        """What people call it."""
        return self.facts.get("name", self.id)

    @property
    def caffemodel(self) -> str:
        """File name of its weights; empty if the readme names none."""
        return self.facts.get("caffemodel", "")

    @property
    def url(self) -> str:
        """Where its weights are published; empty for a model that one trains oneself."""
        return self.facts.get("caffemodel_url", "")

    @property
    def sha1(self) -> str:
        """Digest of the published weights, in hexadecimal; empty if none was published."""
        return self.facts.get("sha1", "")

    @property
    def license(self) -> str:
        """Under what terms the weights may be used."""
        return self.facts.get("license", "")

    @property
    def summary(self) -> str:
        """The first sentence of the readme."""
        paragraph = " ".join(self.text.strip().partition("\n\n")[0].split())
        return re.split(r"(?<=[.:]) (?=[A-Z])", paragraph)[0]

    @property
    def files(self) -> list[Path]:
        """Its prototxts and its readme, sorted by name."""
        return sorted(path for pattern in SHIPPED for path in self.folder.glob(pattern))


def models_folder() -> Path:
    """Return the folder with the models that come with protocaffe.

    It is inside the installed package, or beside it in a checkout.
    """
    package = Path(__file__).resolve().parents[1]
    installed = package / "models"
    return installed if installed.is_dir() else package.parent / "models"


def find_named(name: str, folder: Path) -> Path | None:
    """Find a file or folder that a model's prototxt names, such as a mean or a database.

    Args:
        name: as it stands there: relative to where one is, or to where ``models/`` lies.
        folder: of the model, which may have it under the last part of the name.

    Returns:
        Where it is; None if it is nowhere, or the name is empty.
    """
    if not name:
        return None
    places = (Path(name), folder / Path(name).name, models_folder().parent / name)
    return next((path for path in places if path.exists()), None)


def catalogue(folder: StrPath | None = None) -> dict[str, Model]:
    """Return all models by the names of their folders, sorted.

    Args:
        folder: where the models' folders lie; None for those that come with protocaffe.

    Raises:
        FileError: a readme cannot be read or has no front matter.
    """
    readmes = sorted(Path(folder or models_folder()).glob(f"*/{README}"))
    return {readme.parent.name: read_readme(readme) for readme in readmes}


def find_model(name: str, folder: StrPath | None = None) -> Model:
    """Return the model whose folder has this name.

    Raises:
        UsageError: there is none; the message offers the nearest name.
    """
    models = catalogue(folder)
    if name not in models:
        raise UsageError(f"there is no model '{name}'{near_or_all(name, models)}")
    return models[name]


def read_readme(path: StrPath) -> Model:
    """Return what a model's readme says.

    Raises:
        FileError: the file cannot be read, or its front matter is missing or damaged.
    """
    first, *lines = [line.rstrip() for line in read_text(path).splitlines()] or [""]
    if first != FENCE or FENCE not in lines:
        raise FileError(
            f"{path}:1: expected front matter: lines such as 'caffemodel: NAME.caffemodel' "
            f"between two lines of '{FENCE}', the first of them the first of the file"
        )
    end = lines.index(FENCE)
    facts: dict[str, str] = {}
    for number, line in enumerate(lines[:end], start=2):
        if not line or line.startswith("#"):
            continue
        match = _FACT.fullmatch(line)
        if not match:
            raise FileError(f"{path}:{number}: expected 'key: value' in the front matter: {line}")
        facts[match[1]] = (match[2] or "").strip("\"'")
    readme = Path(path)
    text = "\n".join(lines[end + 1 :]).strip() + "\n"
    return Model(readme.resolve().parent.name, readme.parent, facts, text)
