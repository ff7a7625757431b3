"""Look inside a database: how many records of which kind, shape and label it has.

protocaffe dump_db DB tells LMDB and LevelDB apart by itself. --sheet=FILE.png draws some of the
images, spread evenly over the database, with their labels. The exit code is 1 if there are
records that a Data layer could not use.
"""

from __future__ import annotations

import json
from argparse import Namespace

from protocaffe.cli.counting import counting_progress
from protocaffe.cli.flags import Flag
from protocaffe.data.database import backend_of, open_database
from protocaffe.data.datum import sizes
from protocaffe.data.inspection import Contents, examine, write_sheet
from protocaffe.log import log, number

FLAGS = [
    Flag("db", "the database", required=True, positional=True),
    Flag("limit", "how many records to look at; 0 for all", default=0, at_least=0),
    Flag("json", "print it as JSON, for programs", default=False),
    Flag("sheet", "a PNG file to draw images on"),
    Flag("images", "how many images to draw", default=100, at_least=1),
]

KINDS = {"raw": "raw pixels", "float": "floats", "encoded": "encoded images"}
LABELS_SHOWN = 40
VALUES_SHOWN = 5
BAR = 40
"""Width of the longest bar of the histogram."""


def run(flags: Namespace) -> int:
    """Print what is inside."""
    backend = backend_of(flags.db) or "lmdb"
    with open_database(flags.db, backend) as database:
        total = len(database)
        with counting_progress(min(total, flags.limit or total)) as progress:
            contents = examine(database, flags.limit, progress)
        if flags.json:
            print(json.dumps(_plain(contents, flags.db, backend), indent=2))
        else:
            print("\n".join([*_summary(contents, flags.db, backend), *_histogram(contents)]))
        if flags.sheet:
            drawn = write_sheet(flags.sheet, database, contents, flags.images)
            log.info("Drew %d images on %s", drawn, flags.sheet)
    return 1 if contents.damaged else 0


def _summary(contents: Contents, path: str, backend: str) -> list[str]:
    examined = contents.examined
    part = "" if examined == contents.records else f"; the first {examined} of them:"
    rows = [
        f"{path}: {backend}, {_records(contents.records)}{part}",
        f"  keys    {contents.first_key} ... {contents.last_key}",
        f"  size    {_bytes(contents.size)}, {contents.size // examined} bytes each",
    ]
    kinds = {KINDS.get(kind, f"{kind} images"): n for kind, n in contents.kinds.most_common()}
    shapes = {sizes(shape): n for shape, n in contents.shapes.most_common()}
    rows += _counts("kind", kinds) + _counts("shape", shapes, " (channels x height x width)")
    if contents.kinds:
        rows.append(f"  values  {number(contents.least)} to {number(contents.greatest)}")
    if contents.damaged:
        rows.append(f"  damaged {_records(len(contents.damaged))}, such as:")
        rows += [f"          {message}" for message in contents.damaged[:VALUES_SHOWN]]
    return rows


def _records(count: int) -> str:
    return f"{count} record" + "s" * (count != 1)


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} KB"


def _counts(title: str, counts: dict[str, int], unit: str = "") -> list[str]:
    """Return the rows about one property: its value, or how many records have which values."""
    values = [f"{value}{unit}" for value in counts]
    if len(values) > 1:
        numbers = map(_records, counts.values())
        values = [f"{value}: {n}" for value, n in zip(values, numbers, strict=True)]
    rows = values[:VALUES_SHOWN]
    if len(values) > VALUES_SHOWN:
        rows.append(f"and {len(values) - VALUES_SHOWN} others")
    return [f"  {title if i == 0 else '':<7} {row}" for i, row in enumerate(rows)]


def _histogram(contents: Contents) -> list[str]:
    if not contents.labels:
        return ["  labels  none"]
    rows = [f"  labels  {min(contents.labels)} to {max(contents.labels)}"]
    if contents.unlabeled:
        rows[0] += f"; {_records(contents.unlabeled)} without one"
    if missing := contents.missing_labels():
        shown = ", ".join(map(str, missing[:10])) + (" ..." if len(missing) > 10 else "")
        rows[0] += f"; no record has {shown}"
    labels = sorted(contents.labels)
    width = max(len(contents.title(label)) for label in labels)
    most = max(contents.labels.values())
    for label in labels[:LABELS_SHOWN]:
        count = contents.labels[label]
        title = contents.title(label)
        rows.append(f"    {title:<{width}} {count:>9}  {'#' * round(BAR * count / most)}".rstrip())
    if len(labels) > LABELS_SHOWN:
        rows.append(f"    and {len(labels) - LABELS_SHOWN} labels more; --json has all")
    return rows


def _plain(contents: Contents, path: str, backend: str) -> dict[str, object]:
    """Return what is known as JSON can hold it."""
    return {
        "path": path,
        "backend": backend,
        "records": contents.records,
        "examined": contents.examined,
        "bytes": contents.size,
        "first_key": contents.first_key,
        "last_key": contents.last_key,
        "kinds": dict(contents.kinds),
        "shapes": [{"shape": s, "records": n} for s, n in contents.shapes.most_common()],
        "values": [contents.least, contents.greatest] if contents.kinds else None,
        "labels": {str(label): contents.labels[label] for label in sorted(contents.labels)},
        "unlabeled": contents.unlabeled,
        "class_names": contents.names,
        "damaged": contents.damaged,
    }
