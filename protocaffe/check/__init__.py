"""Finding everything that is wrong with a net or a solver at once, before it runs."""

from protocaffe.check.check import Checked, check_file
from protocaffe.check.problems import Problem

__all__ = ["Checked", "Problem", "check_file"]
