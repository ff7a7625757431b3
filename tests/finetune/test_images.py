from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocaffe.data.entries import Entry
from protocaffe.errors import DataError
from protocaffe.finetune.images import Part, _divided, check_readable, find_images


@pytest.fixture
def make(tmp_path):
    def make(tree):
        for folder, count in tree.items():
            (tmp_path / folder).mkdir(parents=True)
            for index in range(count):
                (tmp_path / folder / f"{index}.png").touch()
        return tmp_path

    return make


def labels(part):
    return Counter(entry.label for entry in part.entries)


@pytest.mark.parametrize("name", ["test", "val"])
def test_parts_are_taken_as_they_are(make, name):
    folder = make({"train/a": 3, "train/b": 2, f"{name}/a": 1, f"{name}/b": 4})
    images = find_images(folder)
    assert images.classes == ["a", "b"]
    assert labels(images.train) == {0: 3, 1: 2}
    assert labels(images.test) == {0: 1, 1: 4}
    assert images.test.root == f"{folder / name}/"


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_a_folder_without_parts_is_divided(make, prefix):
    folder = make({f"{prefix}a": 10, f"{prefix}b": 2})
    images = find_images(folder, 0.3, seed=5)
    assert labels(images.test) == {0: 3, 1: 1}
    assert labels(images.train) == {0: 7, 1: 1}
    assert not {*images.train.entries} & {*images.test.entries}
    assert find_images(folder, 0.3, seed=5) == images
    assert find_images(folder, 0.3, seed=6) != images


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=5),
    st.floats(0.01, 0.99),
    st.integers(0, 9),
)
def test_every_class_is_learned(counts, share, seed):
    entries = [
        Entry(f"{label}/{index}", label)
        for label, count in enumerate(counts)
        for index in range(count)
    ]
    names = [str(label) for label in range(len(counts))]
    train, test = _divided(entries, names, share, seed)
    assert sorted(train + test) == sorted(entries)
    for label, count in enumerate(counts):
        tested = sum(entry.label == label for entry in test)
        assert (tested >= 1) == (count > 1)
        assert tested < count


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": 3}, "one class only, 'a'"),
        ({"train/a": 3, "test/a": 3}, "one class only, 'a'"),
        ({"a": 1, "b": 1}, "one image per class is not enough"),
        ({"a": 1, "b": 0}, "class folder .*b' has no images"),
        ({"train/a": 1, "train/b": 1, "val/a": 1, "val/c": 1}, "first has: b; only .* has: c"),
        ({}, "has no folders in it"),
    ],
)
def test_folders_that_will_not_do(make, tree, message):
    with pytest.raises(DataError, match=message):
        find_images(make(tree))


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        find_images(tmp_path / "x")


def test_a_class_of_damaged_files_is_refused():
    part = Part("r/", [Entry("a/1", 0), Entry("a/2", 0), Entry("b/1", 1)])
    check_readable(part, ["r/a/1"], ["a", "b"])
    with pytest.raises(DataError, match=r"r/b: none of 1 image"):
        check_readable(part, ["r/a/1", "r/b/1"], ["a", "b"])
