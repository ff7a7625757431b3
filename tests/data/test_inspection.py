import cv2
import numpy as np
import pytest

from protocaffe.data import inspection
from protocaffe.data.database import open_database
from protocaffe.data.inspection import CAPTION, CELL, GAP, Contents, examine, write_sheet
from protocaffe.proto.caffe_pb2 import Datum
from tests.data.samples import DATABASES, png, random_images, raw_datum, recorded, write_database


def look(path, limit=0):
    with open_database(path) as database:
        return examine(database, limit)


def test_raw_pixels(monkeypatch):
    monkeypatch.setattr(inspection, "CHUNK", 7)
    contents = look(DATABASES / "gray_16x16_lmdb")
    rows = recorded("gray_16x16_lmdb")
    assert (contents.records, contents.examined, contents.damaged) == (40, 40, [])
    assert (contents.first_key, contents.last_key) == (rows[0]["key"], rows[-1]["key"])
    assert contents.kinds == {"raw": 40}
    assert contents.shapes == {(1, 16, 16): 40}
    assert (contents.least, contents.greatest) == (20, 242)
    labels = [int(row["label"]) for row in rows]
    assert contents.labels == {label: labels.count(label) for label in set(labels)}
    assert contents.missing_labels() == [5]


def test_encoded_images_and_a_limit():
    contents = look(DATABASES / "encoded_asis_lmdb")
    assert contents.kinds == {"jpg": 27, "png": 13}
    assert {shape[0] for shape in contents.shapes} == {1, 3}
    some = look(DATABASES / "encoded_asis_lmdb", limit=3)
    assert (some.records, some.examined) == (40, 3)
    assert some.last_key == recorded("encoded_asis_lmdb")[2]["key"]


def test_floats_and_missing_labels(tmp_path):
    float_data = [0.5, -2]
    datum = Datum(channels=2, height=1, width=1, float_data=float_data).SerializeToString()
    contents = look(write_database(tmp_path / "db", [datum] * 3))
    assert contents.kinds == {"float": 3}
    assert (contents.least, contents.greatest) == (-2, 0.5)
    assert contents.unlabeled == 3
    assert contents.labels == {}
    assert contents.missing_labels() == []


def test_damaged_records_are_told(tmp_path):
    good = raw_datum(random_images((1, 2, 3), 1)[0])
    short = Datum(channels=1, height=2, width=3, data=b"12345").SerializeToString()
    contents = look(write_database(tmp_path / "db", [good, short, b"\xff", good]))
    assert (contents.examined, contents.kinds) == (4, {"raw": 2})
    assert [message.partition(":")[0] for message in contents.damaged] == [
        f"record '{key}' of '{tmp_path / 'db'}'" for key in ("001", "002")
    ]


def test_progress_counts_records(monkeypatch):
    monkeypatch.setattr(inspection, "CHUNK", 15)
    done = []
    with open_database(DATABASES / "gray_16x16_lmdb") as database:
        examine(database, progress=done.append)
    assert done == [15, 30, 40]


def test_names_of_classes(tmp_path):
    path = write_database(tmp_path / "db", [raw_datum(random_images((1, 2, 3), 1)[0], label=1)])
    (path / "labels.txt").write_text("cat\nmy dog\n2\n")
    contents = look(path)
    titles = [contents.title(label) for label in (0, 1, 2, 3, -1)]
    assert titles == ["0: cat", "1: my dog", "2", "3", "-1"]


def sheet_of(path, images):
    with open_database(path) as database:
        contents = examine(database)
        drawn = write_sheet(path / "sheet.png", database, contents, images)
    return drawn, cv2.imread(str(path / "sheet.png"))


def cell(sheet, row, column):
    top, left = row * (CELL + CAPTION + GAP), column * (CELL + GAP)
    return sheet[top : top + CELL, left : left + CELL]


def test_a_sheet_shows_images_and_labels(tmp_path):
    pixels = random_images((3, 4, 4), 3)
    wide = np.repeat(pixels[1], 2, axis=2)
    values = [raw_datum(pixels[0]), raw_datum(wide), raw_datum(pixels[2][:1])]
    drawn, sheet = sheet_of(write_database(tmp_path / "db", values), 100)
    assert drawn == 3
    assert sheet.shape == (2 * (CELL + CAPTION + GAP), 2 * (CELL + GAP), 3)
    factor = CELL // 4
    shown = pixels[0].repeat(factor, axis=1).repeat(factor, axis=2).transpose(1, 2, 0)
    np.testing.assert_array_equal(cell(sheet, 0, 0), shown)
    assert (cell(sheet, 0, 1)[CELL // 2 :] == 255).all()
    gray = pixels[2, 0].repeat(factor, axis=0).repeat(factor, axis=1)
    for channel in range(3):
        np.testing.assert_array_equal(cell(sheet, 1, 0)[..., channel], gray)
    assert (cell(sheet, 1, 1) == 255).all()
    assert (sheet[CELL : CELL + CAPTION, :CELL] < 128).any()  # the label


def test_a_sheet_of_some_images(tmp_path):
    values = [raw_datum(np.full((1, 2, 2), 20 * number, np.uint8)) for number in range(10)]
    drawn, sheet = sheet_of(write_database(tmp_path / "db", values), 4)
    assert drawn == 4
    shown = [cell(sheet, row, column)[0, 0, 0] for row in (0, 1) for column in (0, 1)]
    assert shown == [0, 40, 100, 140]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"\xff", 128),
        (Datum(channels=1, height=1, width=2, float_data=[-1, 3]).SerializeToString(), 255),
        (Datum(encoded=True, data=png(np.zeros((300, 200), np.uint8))).SerializeToString(), 0),
    ],
    ids=["damaged", "floats", "large"],
)
def test_cells_of_other_records(tmp_path, value, expected):
    good = raw_datum(random_images((1, 2, 2), 1)[0])
    _, sheet = sheet_of(write_database(tmp_path / "db", [value, good]), 2)
    assert (cell(sheet, 0, 0)[10, 60] == expected).all()


def test_contents_of_nothing():
    assert Contents(0).missing_labels() == []
