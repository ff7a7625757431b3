import errno
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

from protocaffe.proto import hdf5
from protocaffe.proto.hdf5 import create_hdf5, reserve

LIMITED = """
import resource, sys
import numpy as np
from protocaffe.proto.files import replacing
from protocaffe.proto.hdf5 import create_hdf5, reserve

def write(path):
    with replacing(path) as (temporary,), create_hdf5(temporary) as file:
        for number in range(200):
            reserve(file, 80_000)
            file[f"{number}/values"] = np.ones(10_000)

for limit in (0, 4096, 1 << 20, 1 << 22, (1 << 22) + 5000, 6_000_000, 9_000_000, 12_000_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write("full.h5")
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_room_is_asked_for_and_given_back(tmp_path):
    path = tmp_path / "x.h5"
    with create_hdf5(path) as file:
        reserve(file, 1 << 24)
        assert os.path.getsize(path) > 1 << 24
        file["x"] = np.arange(10)
    assert os.path.getsize(path) < 1 << 14
    with h5py.File(path) as file:
        assert file["x"][...].tolist() == list(range(10))


def test_without_room_nothing_crashes_and_nothing_is_lost(tmp_path):
    (tmp_path / "full.h5").write_text("as it was")
    words = [sys.executable, "-c", LIMITED]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    told = done.stdout.splitlines()
    assert len(told) == 8
    assert all(each.startswith("FileError full.h5: cannot be written: ") for each in told)
    assert told[-1].endswith(os.strerror(errno.EFBIG))
    assert os.listdir(tmp_path) == ["full.h5"]
    assert (tmp_path / "full.h5").read_text() == "as it was"


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EDQUOT])
def test_where_no_room_can_be_asked_for(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(hdf5.os, "posix_fallocate", refuse)
    if number == errno.EDQUOT:
        with pytest.raises(OSError, match=os.strerror(number)), create_hdf5(tmp_path / "x.h5"):
            pass
    else:
        with create_hdf5(tmp_path / "x.h5") as file:
            file["x"] = 1
