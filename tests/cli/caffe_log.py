"""Takes logs apart: into messages, and into the numbers that plotting scripts look for."""

import re

PREFIX = re.compile(
    r"^[IWEF](?:\d{4})?\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ [\w.]+:\d+\] (?P<message>.*)$"
)
UNPLACED = ("Restarting data prefetching", "Creating layer ", "Opened ", "Loaded the weights of ")
"""Lines whose place depends on threads, or on what layers are made of inside, or that are ours."""
BEFORE_VALUES = "= |loss: |Loss: |time: |ward: |pass: |Backward: |Time: "
ITERATION = re.compile(r"Iteration (\d+)")
RATE = re.compile(r"lr = ([\d.eE+-]+)")
OUTPUT = re.compile(r"(Train|Test) net output #(\d+): (\S+) = ([\d.eE+-]+)")


def messages(log):
    """The messages without prefix; lines that have none belong to the message above."""
    found = []
    for line in log.splitlines():
        match = PREFIX.match(line)
        if match:
            found.append(match["message"])
        else:
            found[-1] += f"\n{line}"
    return [each for each in found if not each.startswith(UNPLACED)]


def kind(message):
    """The message without the numbers that differ from run to run."""
    message = re.sub(r"\(\S+ iter/s, \S+s/(\d+) iters\)", r"(speed over \1)", message)
    if message.startswith("Initializing net"):
        return message.partition("\n")[0]
    if "lr = " in message or "\n" in message:
        return message
    return re.sub(rf"({BEFORE_VALUES})[-\d.e+]+", r"\1#", message)


def numbers(log):
    """Rows (iteration, what, value) as Caffe's own log parser would find them."""
    rows, iteration = [], None
    for line in log.splitlines():
        if match := ITERATION.search(line):
            iteration = int(match[1])
        if match := RATE.search(line):
            rows.append((iteration, "lr", float(match[1])))
        if match := OUTPUT.search(line):
            rows.append((iteration, f"{match[1]} {match[3]}", float(match[4])))
    return rows
