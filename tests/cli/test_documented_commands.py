"""Command lines in the documentation are such that the commands take them."""

import importlib
import shlex
from pathlib import Path

import pytest

from protocaffe.cli import COMMANDS
from protocaffe.cli.flags import parse

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def command_lines(page):
    text = page.read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if line.startswith("    protocaffe "):
            words = shlex.split(line.strip(), comments=True)
            ends = [words.index(mark) for mark in ("|", ">", "2>&1", "&&") if mark in words]
            yield words[1 : min(ends, default=None)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_command_lines(page):
    for name, *words in command_lines(page):
        assert name in COMMANDS
        module = importlib.import_module(f"protocaffe.cli.{name}")
        if "--help" not in words:
            parse(f"protocaffe {name}", "", module.FLAGS, words)


def test_the_page_about_data_shows_every_command_for_data():
    shown = {words[0] for words in command_lines(ROOT / "docs" / "data.md")}
    assert shown >= {
        "compute_image_mean",
        "convert_cifar_data",
        "convert_hdf5",
        "convert_imageset",
        "convert_mnist_data",
        "dump_db",
        "extract_features",
        "parse_log",
        "plot_training_log",
        "resize_and_crop_images",
    }
