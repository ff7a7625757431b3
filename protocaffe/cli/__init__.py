"""The command line: ``protocaffe COMMAND [flags]``.

A command is a module of this package, imported when it is called: its docstring is the help
text, ``FLAGS`` a list of :class:`~protocaffe.cli.flags.Flag`, and ``run(flags) -> int`` does the
work and returns the exit code. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted by
Ctrl-C, 143 ended by SIGTERM (128 + the signal's number, as shells count).
"""

from __future__ import annotations

import importlib
import inspect
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from types import ModuleType

from protocaffe.cli.ending import Terminated, orderly_ends
from protocaffe.cli.flags import parse
from protocaffe.errors import ProtocaffeError, UsageError, near_or_all
from protocaffe.log import init_log

COMMANDS = {
    "train": "train or fine-tune a net with the settings of a solver file",
    "finetune": "fine-tune a trained net to other classes, from folders of images",
    "test": "run a trained net over its test data",
    "time": "measure how long each layer of a net takes",
    "device_query": "print what this machine can compute with",
    "check": "find everything that is wrong with a net or a solver",
    "summary": "show shapes, parameters and multiply-adds of a net",
    "classify": "tell what images show, by a trained net",
    "detect": "score windows of images, as R-CNN does",
    "draw": "draw a net with Graphviz",
    "export": "write a trained net as an ONNX model",
    "layers": "list the layer types, or explain one",
    "zoo": "list, copy and download models",
    "convert_imageset": "make a database from a list of images",
    "convert_hdf5": "make HDF5 files of images, CSV tables or NumPy arrays",
    "convert_mnist_data": "make a database from MNIST's original files",
    "convert_cifar_data": "make the databases from CIFAR-10's original files",
    "resize_and_crop_images": "make squares of a folder of images",
    "compute_image_mean": "average the images of a database",
    "dump_db": "look inside a database",
    "extract_features": "store what blobs of a net hold in databases",
    "parse_log": "make tables of the log of a training",
    "plot_training_log": "draw the progress of trainings from their logs",
    "upgrade_net_proto_text": "bring the text of a net to the current format",
    "upgrade_net_proto_binary": "bring a binary net to the current format",
    "upgrade_solver_proto_text": "bring the text of a solver to the current format",
}

FAILED = 1
WRONG_USAGE = 2
SIGNALLED = 128
INTERRUPTED = SIGNALLED + signal.SIGINT
BROKEN_PIPE = 141
"""What a shell reports for a program that SIGPIPE ended."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        argv: the words after ``protocaffe``; ``sys.argv`` unless told otherwise.
    """
    # Its messages about bad images name no file; ours do.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    words = list(sys.argv[1:] if argv is None else argv)
    called = " ".join(["protocaffe", *words[:1]])
    try:
        with orderly_ends():
            code = _dispatch(words)
        sys.stdout.flush()
        return code
    except UsageError as error:
        print(f"{called}: {error}", file=sys.stderr)
        return WRONG_USAGE
    except ProtocaffeError as error:
        print(f"{called}: {_with_model(str(error))}", file=sys.stderr)
        return FAILED
    except MemoryError as error:  # NumPy and CuPy say how much was asked for
        asked = f" ({error})" if str(error) else ""
        hint = "a net takes less with a smaller batch_size"
        print(f"{called}: not enough memory{asked}; {hint}", file=sys.stderr)
        return FAILED
    except Terminated as end:
        return SIGNALLED + end.number
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _close_pipes()
        return BROKEN_PIPE


def _dispatch(words: list[str]) -> int:
    if not words:
        print(_overview(), file=sys.stderr)
        return WRONG_USAGE
    first, rest = words[0], words[1:]
    if first in ("-h", "-help", "--help", "help"):
        print(_overview())
        return 0
    if first in ("-version", "--version"):
        print(f"protocaffe {version('protocaffe')}")
        return 0
    name, command = _command(first)
    try:
        flags = parse(f"protocaffe {name}", inspect.getdoc(command) or "", command.FLAGS, rest)
    except SystemExit:  # argparse leaves this way after --help
        return 0
    init_log()
    code: int = command.run(flags)
    return code


def _command(word: str) -> tuple[str, ModuleType]:
    name = word.replace("-", "_")
    if name not in COMMANDS:
        raise UsageError(f"unknown command{near_or_all(name, COMMANDS)}")
    return name, importlib.import_module(f"{__name__}.{name}")


def _with_model(message: str) -> str:
    """Return the message; if the file that it misses has the name of a model, say where that is."""
    from protocaffe.zoo.catalogue import README, models_folder

    name, _, problem = message.partition(": ")
    folder = models_folder() / name
    if not (problem.startswith("no such file") and (folder / README).is_file()):
        return message
    files = ", ".join(sorted(each.name for each in folder.glob("*.prototxt")))
    return f"{name}: no such file; the model '{name}' has {files} in {folder}"


def _overview() -> str:
    rows = [f"  {name:<27}{summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        ["usage: protocaffe COMMAND [flags]", "", *rows, "", "protocaffe COMMAND --help says more."]
    )


def _close_pipes() -> None:
    """Point stdout and stderr nowhere, else Python complains about them when it exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
