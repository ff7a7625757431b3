"""Draw the progress of trainings from their logs, over each other.

protocaffe plot_training_log OUT LOG... draws all outputs of the nets and the learning rates. OUT is
a .png, .svg or .pdf file, which is overwritten. protocaffe plot_training_log CHART OUT LOG... draws
one of Caffe's charts: 0 test accuracy, 2 test loss, 4 learning rate and 6 training loss over
iterations; 1, 3, 5 and 7 the same over seconds.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace

from protocaffe.cli.flags import Flag
from protocaffe.errors import UsageError
from protocaffe.log import log
from protocaffe.plot_log import CHARTS, plot_chart, plot_overview, read_runs

FLAGS = [
    Flag(
        "out", "the picture to write, after a chart's number if any", required=True, positional=True
    ),
    Flag("logs", "the logs of the trainings", required=True, positional=True, many=True),
    Flag("output", "which output a numbered chart shows instead of accuracy or loss"),
    Flag("seconds", "draw over seconds instead of iterations", default=False),
]


def run(flags: Namespace) -> int:
    """Draw as the flags say."""
    out, logs = flags.out, flags.logs
    if not out.isdigit():
        if flags.output:
            raise UsageError("--output goes with a chart's number, 0 to 7")
        plot_overview(read_runs(logs), out, flags.seconds)
    else:
        if int(out) >= len(CHARTS):
            raise UsageError(f"chart {out} is not known; there are 0 to {len(CHARTS) - 1}")
        if len(logs) < 2:
            raise UsageError(f"expected the picture to write and a log after chart {out}")
        chart, (out, *logs) = CHARTS[int(out)], logs
        if flags.output:
            chart = replace(chart, output=flags.output)
        plot_chart(read_runs(logs), chart, out)
    log.info("Drew %d logs on %s", len(logs), out)
    return 0
