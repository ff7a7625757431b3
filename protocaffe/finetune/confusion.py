"""Which classes a net takes for which: a table that people can read, for 2 classes or for 100."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from protocaffe.net import Net
from protocaffe.proto import caffe_pb2

Counts = npt.NDArray[np.int64]

WHOLE = 20
"""Up to this many classes, the whole table is shown; with more, what stands out."""
WORST = 10
"""How many classes and confusions stand out."""
NAME = 20
"""Letters of a class's name that are shown."""
SHORT = 4
"""Letters of names that fit above columns."""


def count_confusions(
    net: str | Path, weights: str | Path, scores: str, label: str, images: int, *, engine: str = ""
) -> Counts:
    """Run a net once over its test data.

    Args:
        net: the prototxt with the data layer, whose TEST phase is run.
        weights: the ``.caffemodel``.
        scores: name of the blob with the scores.
        label: name of the blob with the true classes.
        images: how many there are to test on.
        engine: see :class:`~protocaffe.net.Net`.

    Returns:
        How many images of each class (row) the net takes for each class (column).
    """
    running = Net(net, caffe_pb2.TEST, weights=weights, engine=engine or None)
    try:
        classes = running.blobs[scores].shape[1]
        counts = np.zeros((classes, classes), np.int64)
        left = images
        while left > 0:
            running.forward()
            truth = running.blobs[label].data.ravel()[:left].astype(int)
            found = running.blobs[scores].data.reshape(-1, classes)[:left].argmax(axis=1)
            np.add.at(counts, (truth, found), 1)
            left -= len(truth)
    finally:
        running.close()
    return counts


def accuracy(counts: Counts) -> float:
    """Return the share of images that are taken for what they are."""
    return float(counts.trace() / max(1, counts.sum()))


def confusion_csv(counts: Counts, names: Sequence[str]) -> str:
    """Return the whole table as CSV: a row per true class."""
    import csv
    import io

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["true class", *names])
    writer.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
    return out.getvalue()


def describe_confusions(counts: Counts, names: Sequence[str], width: int = 100) -> Iterator[str]:
    """Yield lines that show the table, or what stands out if there are many classes.

    Args:
        counts: rows are true classes, columns what the net says.
        names: of the classes.
        width: how long lines may be.
    """
    longest = min(NAME, max(map(len, names)))
    table = list(_table(counts, names, longest)) if len(names) <= WHOLE else []
    if table and max(map(len, table)) <= width:
        yield from table
    else:
        yield from _worst_classes(counts, names, longest)
        yield ""
        yield from _worst_pairs(counts, names)


def _table(counts: Counts, names: Sequence[str], longest: int) -> Iterator[str]:
    """Show all; columns have the classes' names if these are short, else numbers."""
    named = longest <= SHORT
    heads = names if named else [str(number) for number in range(len(names))]
    rows = [_short(name) if named else f"{i:>2} {_short(name)}" for i, name in enumerate(names)]
    cells = max(3, len(str(counts.max())), *map(len, heads))
    margin = max(map(len, rows))
    yield "Rows are the true classes, columns what the net says."
    yield ""
    yield " " * margin + "".join(f" {head:>{cells}}" for head in heads) + "  right"
    for place, (label, row) in enumerate(zip(rows, counts, strict=True)):
        found = "".join(f" {count or '.':>{cells}}" for count in row)
        yield f"{label:<{margin}}{found}  {_share(row[place], row.sum())}"


def _worst_classes(counts: Counts, names: Sequence[str], longest: int) -> Iterator[str]:
    seen = counts.sum(axis=1)
    right = counts.diagonal() / np.maximum(seen, 1)
    order = [place for place in np.argsort(right, kind="stable") if seen[place]]
    yield f"Of {len(names)} classes, those that are recognised least:"
    yield ""
    for place in order[:WORST]:
        share = _share(counts[place, place], seen[place])
        yield f"  {_short(names[place]):<{longest}} {share} of {seen[place]}"


def _worst_pairs(counts: Counts, names: Sequence[str]) -> Iterator[str]:
    wrong = counts - np.diag(counts.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:WORST]
    pairs = [(wrong.flat[place], *divmod(int(place), len(names))) for place in order]
    yield "What is taken for something else most often:"
    yield ""
    for count, truth, found in pairs:
        if count:
            yield f"  {count:>5} times {_short(names[truth])} for {_short(names[found])}"


def _short(name: str) -> str:
    return name if len(name) <= NAME else f"{name[: NAME - 1]}…"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:5.1f} %" if whole else "    - "
