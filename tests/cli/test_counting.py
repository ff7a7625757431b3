import os
import pty
import re
import subprocess
import sys

from protocaffe.cli.counting import counting_progress
from tests.data.samples import DATABASES


def test_no_bar_without_a_terminal(capsys):
    with counting_progress(3) as progress:
        progress(1)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_under_the_log():
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "protocaffe", "compute_image_mean", DATABASES / "gray_16x16_lmdb"],
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "60"},
    )
    os.close(theirs)
    shown = b""
    while chunk := read_terminal(ours):
        shown += chunk
    os.close(ours)
    assert process.wait(timeout=60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "40/40" in text
    assert "] Processed 40 files." in text


def read_terminal(descriptor):
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # what Linux says when the other side has closed
        return b""
