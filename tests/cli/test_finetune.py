import csv
import re

import pytest

from tests.finetune.samples import write_images


@pytest.fixture
def photos(tmp_path):
    write_images(tmp_path / "photos", {"dark": 12, "grey": 12, "light": 12})
    return "photos"


def test_from_images_to_a_net(run_protocaffe, photos, tmp_path):
    done = run_protocaffe(
        *("finetune", "--model=digits", f"--data={photos}", "--iterations=40", "--seed=3")
    )
    assert done.returncode == 0, done.stderr
    accuracy = float(re.search(r"Accuracy: ([\d.]+) % of 6 test images", done.stdout)[1])
    assert accuracy >= 80
    assert "2 light" in done.stdout
    out = tmp_path / "photos_digits"
    rows = list(csv.reader((out / "confusion.csv").read_text().splitlines()))
    assert rows[0] == ["true class", "dark", "grey", "light"]
    assert sum(int(cell) for row in rows[1:] for cell in row[1:]) == 6
    again = run_protocaffe("train", "--solver=photos_digits/solver.prototxt")
    assert again.returncode == 0, again.stderr
    third = run_protocaffe(
        *("finetune", "--model=photos_digits", "--data=photos", "--out=third", "--notrain")
    )
    assert third.returncode == 0, third.stderr
    assert (tmp_path / "third" / "solver.prototxt").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--model=digitz"], 2, "did you mean 'digits'"),
        (["--model=digits", "--scratch", "--weights=x"], 2, "not both"),
        (["--model=digits", "--test_share=1"], 2, "between 0 and 1"),
        (["--model=digits", "--size=8,8,8"], 2, "expected NUMBER or HEIGHT,WIDTH"),
        (["--model=digits", "--scale=a"], 2, "expected numbers"),
        (["--model=digits", "--layer=ip1"], 2, "possible: ip2"),
        (["--model=digits", "--out=photos"], 1, "exists already"),
        (["--model=digits", "--weights=none.caffemodel"], 1, "no such file"),
    ],
)
def test_mistakes(run_protocaffe, photos, tmp_path, words, code, message):
    done = run_protocaffe("finetune", "--data=photos", *words)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
