"""The page of commands has every command, and no flag that does not exist."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from protocaffe.cli import COMMANDS
from protocaffe.cli.flags import parse
from protocaffe.summary import summarize
from protocaffe.zoo.catalogue import models_folder

PAGE = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
EXAMPLES = re.findall(r"^    (?:\$ )?protocaffe (.*?)(?: 2>&1.*)?$", PAGE, re.MULTILINE)


def test_every_command_is_explained_and_has_an_example():
    explained = set(re.findall(r"\*\*(\w+)\*\*", PAGE))
    assert explained == set(COMMANDS)
    assert {example.split()[0] for example in EXAMPLES} == set(COMMANDS)


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_are_understood(example):
    name, *words = shlex.split(example)
    parse(f"protocaffe {name}", "", import_module(f"protocaffe.cli.{name}").FLAGS, words)


def test_the_figures_of_the_summary():
    summary = summarize(models_folder() / "lenet" / "deploy.prototxt")
    assert f"Parameters {summary.parameters:,} (1.7 MB)" in PAGE
    for layer in summary.layers:
        shape = "x".join(map(str, layer.shapes[0]))
        assert re.search(rf"^     {layer.name} +{layer.type} +{shape} ", PAGE, re.MULTILINE)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((\w+\.md)\)", PAGE):
        assert (Path(__file__).parents[2] / "docs" / target).is_file()
