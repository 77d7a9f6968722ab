"""A time limit for long test runs: tests begin in an order that rotates, until a deadline, and the rest is listed.

`.ci/run` uses it for the tests marked `full`. Over several runs, all of them have their turn.
"""

import time

import pytest

LEFT = "left for the next run: the deadline has come"


def pytest_addoption(parser):
    group = parser.getgroup("budget")
    group.addoption("--deadline", type=float, metavar="SECONDS", help="since the epoch; no test begins after it")
    group.addoption("--rotate", type=int, default=0, metavar="N", help="begin with the N-th file, modulo their number")


def pytest_collection_modifyitems(config, items):
    files = list(dict.fromkeys(item.path for item in items))  # the tests of a file share fixtures and stay together
    if files and (first := config.getoption("--rotate") % len(files)):
        place = {file: number for number, file in enumerate(files[first:] + files[:first])}
        items.sort(key=lambda item: place[item.path])


def pytest_runtest_setup(item):
    deadline = item.config.getoption("--deadline")
    if deadline is not None and time.time() > deadline:
        pytest.skip(LEFT)


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.getreports("skipped")
    left = [report.nodeid for report in skipped if LEFT in str(report.longrepr)]
    if left:
        terminalreporter.section(f"{len(left)} tests left for the next run")
        for name in left:
            terminalreporter.line(name)
