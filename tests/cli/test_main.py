import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from protocaffe import cli, errors
from protocaffe.cli.ending import Terminated
from protocaffe.cli.flags import Flag
from protocaffe.proto.files import read_bytes


@pytest.fixture
def attempt(monkeypatch):
    """Run ``protocaffe attempt`` with a given function in place of a command."""

    def attempt(run, *words):
        command = types.ModuleType("attempt", "Try something.")
        command.FLAGS = [Flag("speed", "how fast", default=1)]
        command.run = run
        monkeypatch.setitem(cli.COMMANDS, "attempt", "try something")
        monkeypatch.setitem(cli.sys.modules, "protocaffe.cli.attempt", command)
        return cli.main(["attempt", *words])

    return attempt


def test_flags_reach_the_command_and_its_exit_code_returns(attempt):
    assert attempt(lambda flags: flags.speed, "--speed=3") == 3


def raising(error):
    def run(flags):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (errors.NetError("layer 'x': no"), 1, "protocaffe attempt: layer 'x': no\n"),
        (errors.UsageError("not both"), 2, "protocaffe attempt: not both\n"),
        (
            MemoryError("Unable to allocate 9 TiB"),
            1,
            "protocaffe attempt: not enough memory (Unable to allocate 9 TiB); a net takes less "
            "with a smaller batch_size\n",
        ),
        (KeyboardInterrupt(), 130, ""),
        (Terminated(15), 143, ""),
    ],
)
def test_errors_become_one_message_and_a_code(attempt, capsys, error, code, message):
    assert attempt(raising(error)) == code
    captured = capsys.readouterr()
    assert captured.err == message
    assert captured.out == ""


def test_the_name_of_a_model_in_place_of_a_file(attempt, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert attempt(lambda flags: read_bytes("lenet")) == 1
    where = r"lenet: no such file; the model 'lenet' has deploy\.prototxt, .*\.prototxt in (/.*)\n"
    found = re.search(where, capsys.readouterr().err)
    assert found is not None
    assert (Path(found[1]) / "deploy.prototxt").is_file()
    Path("lenets").touch()
    assert attempt(lambda flags: read_bytes("lenet")) == 1
    assert re.search(where, capsys.readouterr().err)
    for other in ("no", "lenet/no", ".."):
        assert attempt(lambda flags, other=other: read_bytes(other)) == 1
        assert "the model" not in capsys.readouterr().err


def test_programming_errors_are_not_hidden(attempt):
    with pytest.raises(ZeroDivisionError):
        attempt(lambda flags: 1 // 0)


def test_wrong_flags_are_wrong_usage(attempt, capsys):
    assert attempt(lambda flags: 0, "--sped=3") == 2
    assert "unknown flag --sped; did you mean '--speed'?" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_of_a_command(attempt, capsys, word):
    assert attempt(lambda flags: 1, word) == 0
    assert capsys.readouterr().out.startswith("usage: protocaffe attempt [flags]\n\nTry something.")


def test_no_command_lists_them(capsys):
    assert cli.main([]) == 2
    listed = capsys.readouterr().err
    for name, summary in cli.COMMANDS.items():
        assert name in listed
        assert summary in listed


def test_help_lists_the_commands(capsys):
    assert cli.main(["--help"]) == 0
    assert "device_query" in capsys.readouterr().out


def test_an_unknown_command_gets_the_nearest(capsys):
    assert cli.main(["trian"]) == 2
    assert "protocaffe trian: unknown command; did you mean 'train'?" in capsys.readouterr().err


def test_version(run_protocaffe):
    done = run_protocaffe("--version")
    assert done.returncode == 0
    assert done.stdout.split()[0] == "protocaffe"
    assert done.stdout.split()[1][0].isdigit()


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_explains_itself(capsys, command):
    assert cli.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: protocaffe {command} ")
    assert "\n\n" in text


def test_a_reader_that_leaves_early_gets_no_traceback():
    command = [sys.executable, "-m", "protocaffe", "device_query"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as writer:
        writer.stdout.close()
        assert writer.stderr.read() == b""
        assert writer.wait(timeout=60) == cli.BROKEN_PIPE
