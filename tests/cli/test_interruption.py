"""Conversions that are interrupted: nothing half-written, and the next run is not disturbed."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from protocaffe.data.database import open_database
from tests.data.samples import png, random_images

IMAGES = 40000

COMMANDS = {
    "convert_imageset": ["images/", "list.txt", "out"],
    "convert_hdf5": ["images/", "list.txt", "out"],
    "convert_mnist_data": ["digits", "labels", "out"],
    "resize_and_crop_images": [
        "--input_folder=images",
        "--output_folder=out",
        "--input=list.txt",
        "--output_side_length=300",
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Enough work for some seconds."""
    folder = tmp_path_factory.mktemp("interruption")
    (folder / "images").mkdir()
    for number in range(10):
        image = random_images((40, 40, 3), 1)[0]
        (folder / "images" / f"{number}.png").write_bytes(png(image))
    lines = [f"{number % 10}.png {number % 10}\n" for number in range(IMAGES)]
    (folder / "list.txt").write_text("".join(lines))
    sizes = np.array([10 * IMAGES, 10, 10], ">u4").tobytes()
    (folder / "digits").write_bytes(b"\0\0\x08\x03" + sizes + bytes(1000 * IMAGES))
    (folder / "labels").write_bytes(b"\0\0\x08\x01" + sizes[:4] + bytes(10 * IMAGES))
    return folder


@pytest.fixture(autouse=True)
def _start_without_output(folder):
    shutil.rmtree(folder / "out", ignore_errors=True)


def interrupted(folder, command, number, wait):
    """Start a command, send a signal some time after it has begun to write; return its code."""
    words = [sys.executable, "-m", "protocaffe", command, *COMMANDS[command]]
    process = subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not list(folder.glob("out.partial-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(wait)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    return process.returncode


def written(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith("out")]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_end_leaves_nothing(folder, command, number):
    wait = random.Random(f"{command} {number}").uniform(0, 0.3)
    assert interrupted(folder, command, number, wait) == 128 + number
    assert written(folder) == []


def test_a_killed_run_is_cleaned_up_by_the_next(folder):
    assert interrupted(folder, "convert_imageset", signal.SIGKILL, 0.2) == -signal.SIGKILL
    (left,) = written(folder)
    assert left.startswith("out.partial-")
    (folder / "short.txt").write_text("1.png 1\n")
    words = [sys.executable, "-m", "protocaffe", "convert_imageset", "images/", "short.txt", "out"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0
    assert f"Removing {left}, left behind by an interrupted run" in done.stderr
    assert written(folder) == ["out"]
    with open_database(folder / "out") as database:
        assert len(database) == 1


def test_what_is_to_be_replaced_stays_until_the_end(folder):
    (folder / "out").mkdir()
    (folder / "out" / "data.mdb").touch()
    words = [*COMMANDS["convert_imageset"], "--force"]
    process = subprocess.Popen(
        [sys.executable, "-m", "protocaffe", "convert_imageset", *words],
        cwd=folder,
        stderr=subprocess.DEVNULL,
    )
    while not list(folder.glob("out.partial-*")):
        time.sleep(0.005)
    process.terminate()
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert written(folder) == ["out"]
    assert os.listdir(folder / "out") == ["data.mdb"]
