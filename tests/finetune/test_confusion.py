import csv
import io

import numpy as np

from protocaffe.finetune.confusion import accuracy, confusion_csv, describe_confusions


def test_a_table_for_few_classes():
    lines = list(describe_confusions(np.array([[9, 1], [0, 4]]), ["cat", "dog"]))
    assert lines[2:] == [
        "    cat dog  right",
        "cat   9   1   90.0 %",
        "dog   .   4  100.0 %",
    ]


def test_columns_of_longer_names_are_numbered():
    lines = list(describe_confusions(np.array([[9, 1], [0, 1234]]), ["horse", "dog"]))
    assert lines[2:] == [
        "            0    1  right",
        " 0 horse    9    1   90.0 %",
        " 1 dog      . 1234  100.0 %",
    ]


def test_what_stands_out_of_many_classes():
    names = [f"class{place}" for place in range(100)]
    counts = np.diag([50] * 100)
    counts[7, 7], counts[7, 8] = 10, 40
    counts[3] = 0  # never seen
    lines = list(describe_confusions(counts, names, width=80))
    assert len(lines) < 30
    assert max(map(len, lines)) <= 80
    assert "class7" in lines[2]
    assert "20.0 % of 50" in lines[2]
    assert lines[-1].split() == ["40", "times", "class7", "for", "class8"]
    assert not any("class3 " in line for line in lines)


def test_long_names_are_cut():
    lines = list(describe_confusions(np.eye(2, dtype=int), ["x" * 50, "y"], width=100))
    assert max(map(len, lines[1:])) < 60
    assert "x…" in lines[3]


def test_a_narrow_terminal_gets_no_table():
    counts = np.eye(15, dtype=int)
    lines = list(describe_confusions(counts, list("abcdefghijklmno"), width=40))
    assert "recognised least" in lines[0]


def test_csv_has_all():
    counts = np.array([[1, 2], [3, 4]])
    rows = list(csv.reader(io.StringIO(confusion_csv(counts, ["a,b", "c"]))))
    assert rows == [["true class", "a,b", "c"], ["a,b", "1", "2"], ["c", "3", "4"]]


def test_accuracy():
    assert accuracy(np.array([[3, 1], [0, 0]])) == 0.75
    assert accuracy(np.zeros((2, 2), int)) == 0
