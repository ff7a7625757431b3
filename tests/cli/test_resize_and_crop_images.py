import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from tests.data.samples import png, random_images

FOLDERS = ["--input_folder=in", "--output_folder=out"]


@pytest.fixture
def folder(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(random_images((30, 40, 3), 1)[0]))
    (tmp_path / "list.txt").write_text("a/2.png 1\nb/none.png 2\n")
    (tmp_path / "full").mkdir()
    return tmp_path


def test_a_folder(run_protocaffe, folder):
    words = [*FOLDERS, "--output_side_length=12", "--num_clients=2"]
    done = run_protocaffe("resize_and_crop_images", *words)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.endswith("] Wrote 3 images to out\n")
    squares = sorted((folder / "out").rglob("*.png"))
    assert [str(path.relative_to(folder / "out")) for path in squares] == [
        "a/1.png",
        "a/2.png",
        "b/3.png",
    ]
    assert all(cv2.imread(str(path)).shape == (12, 12, 3) for path in squares)


def test_a_list(run_protocaffe, folder):
    done = run_protocaffe("resize_and_crop_images", *FOLDERS, "--input=list.txt")
    assert done.returncode == 0
    assert "in/b/none.png (list.txt:2: No such file or directory)" in done.stderr
    assert "1 of 2 files were skipped." in done.stderr
    assert cv2.imread(str(folder / "out" / "a" / "2.png")).shape == (256, 256, 3)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([*FOLDERS, "--input=list.txt", "--strict"], 1, "list.txt:2: image 'in/b/none.png': No"),
        (["--input_folder=none", "--output_folder=out"], 1, "folder of images 'none"),
        (["--input_folder=in", "--output_folder=full"], 1, "'full' exists already"),
        (["--input_folder=in"], 2, "output_folder"),
        ([*FOLDERS, "--output_side_length=0"], 2, "at least 1"),
        ([*FOLDERS, "--image_lib=gimp"], 2, "opencv"),
    ],
)
def test_mistakes(run_protocaffe, folder, words, code, message):
    before = sorted(folder.iterdir())
    done = run_protocaffe("resize_and_crop_images", *words)
    assert done.returncode == code
    assert message in done.stderr.partition("protocaffe resize_and_crop_images: ")[2]
    assert sorted(folder.iterdir()) == before


def test_the_script_is_the_same(folder):
    script = Path(__file__).parents[2] / "scripts" / "resize_and_crop_images.py"
    subprocess.run([sys.executable, script, *FOLDERS], cwd=folder, check=True, capture_output=True)
    assert (folder / "out" / "b" / "3.png").exists()
