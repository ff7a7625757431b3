"""Look through the models that come with protocaffe, get their weights, start your own.

protocaffe zoo ls             lists the models
protocaffe zoo info NAME      tells what there is to know about one
protocaffe zoo cp NAME DIR    copies one to DIR, to change it
protocaffe zoo download NAME  gets its published weights into its folder, checked
protocaffe zoo gist ID [DIR]  gets a model that somebody shares as a gist, into DIR (models)

NAME is a model of the list, or a folder with a readme.md like theirs. Downloads go on where they
stopped. PROTOCAFFE_ZOO names a folder or an address to look for weights first; http_proxy and
https_proxy work as everywhere.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from protocaffe.cli.common import log_warnings_only
from protocaffe.cli.flags import Flag
from protocaffe.cli.summary import scaled
from protocaffe.errors import FileError, ProtocaffeError, UsageError, near_or_all
from protocaffe.log import log_above
from protocaffe.summary import Summary, summarize
from protocaffe.zoo.catalogue import Model, catalogue, models_folder
from protocaffe.zoo.copying import copy_model
from protocaffe.zoo.download import download_weights, open_model, weights_path
from protocaffe.zoo.fetch import Progress, digest
from protocaffe.zoo.gist import download_gist

FLAGS = [
    Flag("action", "ls, info, cp, download or gist", required=True, positional=True),
    Flag("name", "the model, its folder, or the gist", positional=True),
    Flag("dir", "where to put a copy or a gist", positional=True),
    Flag("force", "replace what is there", default=False),
]


def run(flags: Namespace) -> int:
    """Do what the first word says."""
    if flags.action not in ACTIONS:
        raise UsageError(f"unknown action '{flags.action}'{near_or_all(flags.action, ACTIONS)}")
    log_warnings_only()
    action, least, most = ACTIONS[flags.action]
    words = [word for word in (flags.name, flags.dir) if word]
    if not least <= len(words) <= most:
        raise UsageError(f"'protocaffe zoo --help' shows what '{flags.action}' needs")
    action(flags)
    return 0


def _list(flags: Namespace) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    models = catalogue(flags.name or None)
    if not models:
        raise FileError(f"{flags.name or models_folder()}: has no folders with a readme.md")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("Model", no_wrap=True)
    for header in ("Params", "M-adds"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("Accuracy")
    table.add_column("Weights", no_wrap=True)
    for model in models.values():
        table.add_row(model.id, *_costs(model), model.facts.get("accuracy", ""), _weights(model))
    Console(width=None if sys.stdout.isatty() else WIDE).print(table)


WIDE = 120
"""Columns for a reader that is no terminal."""


def _info(flags: Namespace) -> None:
    model = open_model(flags.name)
    rows = {**model.facts, "folder": str(model.folder), "weights": _weights(model, verify=True)}
    rows["files"] = ", ".join(path.name for path in model.files)
    summary = _summary(model)
    if summary:
        rows["input"] = ", ".join(
            f"{name} {'x'.join(map(str, shape))}" for name, shape in summary.inputs.items()
        )
        rows["parameters"], rows["multiply-adds"] = _counts(summary)
    width = max(map(len, rows)) + 2
    for key, value in rows.items():
        print(f"{key:<{width}}{value}")
    print(f"\n{model.text}", end="")


def _copy(flags: Namespace) -> None:
    made = copy_model(open_model(flags.name), flags.dir, force=flags.force)
    print(f"{made}: {', '.join(sorted(path.name for path in made.iterdir()))}")


def _download(flags: Namespace) -> None:
    model = open_model(flags.name)
    with _byte_progress() as progress:
        path, address = download_weights(model, force=flags.force, progress=progress)
    checked = "its sha1 is right" if model.sha1 else "no sha1 was published to check it with"
    print(f"{path}: {f'got it from {address}' if address else 'is there already'}; {checked}")


def _gist(flags: Namespace) -> None:
    made = download_gist(flags.name, flags.dir or "models")
    names = ", ".join(sorted(path.name for path in made.iterdir() if path.name[0] != "."))
    print(f"{made}: {names}\nprotocaffe zoo download {made} gets its weights.")


ACTIONS: dict[str, tuple[Callable[[Namespace], None], int, int]] = {
    "ls": (_list, 0, 1),
    "info": (_info, 1, 1),
    "cp": (_copy, 2, 2),
    "download": (_download, 1, 1),
    "gist": (_gist, 1, 2),
}
"""What to call, and how many words it takes at least and at most."""


def _summary(model: Model) -> Summary | None:
    """Count what a model costs; None if it has no deploy.prototxt that can be read."""
    try:
        return summarize(model.folder / "deploy.prototxt")
    except ProtocaffeError:
        return None


def _costs(model: Model) -> tuple[str, str]:
    summary = _summary(model)
    return _counts(summary) if summary else ("?", "?")


def _counts(summary: Summary) -> tuple[str, str]:
    """Return parameters and multiply-adds, for one image."""
    return scaled(summary.parameters), scaled(summary.multiply_adds // summary.batch)


def _weights(model: Model, *, verify: bool = False) -> str:
    """Say in a few words where a model's weights are."""
    if not model.caffemodel:
        return "none"
    path = weights_path(model)
    if not path.exists():
        return "download" if model.url else "train it"
    if verify and model.sha1 and digest(path) != model.sha1:
        return f"{path} is another file than the readme says: its sha1 differs"
    return str(path) if verify else "here"


@contextmanager
def _byte_progress() -> Iterator[Progress | None]:
    """Show bytes, speed and time left while the block runs; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    bar = Bar(*columns, console=console, transient=True)
    task = bar.add_task("", total=None)
    with bar, log_above(console):
        yield lambda done, total: bar.update(task, completed=done, total=total or None)
