import io
import logging
import math
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocaffe.log import init_log, log, log_above, number, only_warnings

PREFIX = re.compile(
    r"^(?P<level>[IWEF])(?P<month>\d\d)(?P<day>\d\d) (?P<time>\d\d:\d\d:\d\d\.\d{6}) "
    r"+(?P<thread>\d+) (?P<file>\w+\.py):(?P<line>\d+)\] (?P<message>.*)$"
)


@pytest.fixture
def lines():
    """The log as a stream, put back to silence afterwards."""
    stream = io.StringIO()
    init_log(stream)
    yield stream
    log.handlers[:] = [each for each in log.handlers if isinstance(each, logging.NullHandler)]
    log.setLevel(logging.NOTSET)


@pytest.mark.parametrize(
    ("level", "letter"),
    [
        (logging.INFO, "I"),
        (logging.WARNING, "W"),
        (logging.ERROR, "E"),
        (logging.CRITICAL, "F"),
    ],
)
def test_prefix_is_glogs(lines, level, letter):
    log.log(level, "Iteration %d, loss = %s", 5, number(2.5))
    match = PREFIX.match(lines.getvalue())
    assert match is not None
    assert match["level"] == letter
    assert match["file"] == "test_log.py"
    assert match["message"] == "Iteration 5, loss = 2.5"
    assert 1 <= int(match["month"]) <= 12
    assert 1 <= int(match["day"]) <= 31


def test_only_the_first_line_has_the_prefix(lines):
    log.info("Initializing net from parameters: \nname: 'x'\nlayer {\n")
    first, *rest = lines.getvalue().splitlines()
    assert PREFIX.match(first)["message"] == "Initializing net from parameters: "
    assert rest == ["name: 'x'", "layer {"]


def test_a_second_init_moves_the_log_and_does_not_double_it(lines):
    other = io.StringIO()
    init_log(other)
    log.info("once")
    assert lines.getvalue() == ""
    assert other.getvalue().count("once") == 1


def test_stderr_is_looked_up_when_a_line_is_written(lines, monkeypatch):
    init_log()
    replaced = io.StringIO()
    monkeypatch.setattr(sys, "stderr", replaced)
    log.info("here")
    assert "here" in replaced.getvalue()


def test_lower_levels_are_left_out(lines):
    log.debug("too small to say")
    init_log(lines, level=logging.ERROR)
    log.warning("also too small")
    assert lines.getvalue() == ""


def test_the_library_is_silent_until_asked():
    code = "from protocaffe.log import log; log.info('a'); log.warning('b'); log.error('c')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr == ""


def test_lines_go_above_a_live_display(lines):
    from rich.console import Console

    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=40)
    long = "x" * 100
    with log_above(console):
        log.info("[bold]not markup[/bold] :smile: %s", long)
    log.info("afterwards")
    assert "[bold]not markup[/bold] :smile: " + long in terminal.getvalue()
    assert "afterwards" not in terminal.getvalue()
    assert "afterwards" in lines.getvalue()
    assert long not in lines.getvalue()


def test_a_reader_that_went_away_ends_the_writer(lines):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    init_log(Gone())
    with pytest.raises(BrokenPipeError):
        log.info("anybody there?")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1, "1"),
        (0.01, "0.01"),
        (1e-5, "1e-05"),
        (100000, "100000"),
        (1e6, "1e+06"),
        (2.0866929, "2.08669"),
        (-22905000, "-2.2905e+07"),
        (1.57781e11, "1.57781e+11"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (math.nan, "nan"),
        (-math.nan, "-nan"),
    ],
)
def test_numbers_look_as_from_a_cpp_stream(value, text):
    assert number(value) == text


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_numbers_keep_six_digits(value):
    assert float(number(value)) == pytest.approx(value, rel=1e-5, abs=0)


def test_only_warnings_for_a_while(lines):
    with only_warnings():
        log.info("small")
        log.warning("large")
    log.info("after")
    assert [each.partition("] ")[2] for each in lines.getvalue().splitlines()] == ["large", "after"]
