"""The tutorial on docs/python.md: its blocks run one after the other, as a reader runs them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_the_tutorial_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Blocks share their names; one that begins with a file's name is saved as that file."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    text = PAGE.read_text()
    for match in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
        block = match[1]
        file = re.match(r"# (\w+\.py)\n", block)
        if file:
            (tmp_path / file[1]).write_text(block)
            continue
        line = text[: match.start()].count("\n") + 1
        exec(compile("\n" * line + block, PAGE, "exec"), names)
    printed = capsys.readouterr().out
    sys.modules.pop("my_layers")
    assert "[16. 16. 16. 16.]" in printed
    assert _number(r"300 loss \S+ accuracy (\S+)", printed) > 0.9
    assert _number(r"right: (\S+)", printed) > 0.9
    assert _number(r"negative before: \S+ after: (\S+)", printed) == 0
    assert _number(r"nearest neighbour right: (\S+)", printed) > 0.85
    scratch, tuned = (_number(rf"{way}: +(\S+)", printed) for way in ("scratch", "fine-tuned"))
    assert tuned > scratch
    assert _number(r"\nloss: (\S+)", printed) < 0.3
    for hint in (
        "did you mean 'data'",
        r"shape (1, 1, 8, 32)",
        "did you mean 'ip1_conv'",
        "force_",
    ):
        assert hint in printed


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found is not None, text
    return float(found[1])


def test_every_link_of_the_page_leads_somewhere() -> None:
    text = PAGE.read_text()
    headings = [
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    ]
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings
        else:
            assert (PAGE.parent / target).exists()
