"""pytest plugin: what every test costs in processor time, a limit for the fast set, and tables at the end.

Processor time (user + system, of the worker and of the processes that it started and waited for) says what a test
costs on a busy machine too, where the clock does not.
"""

import os
import resource
import time
from collections import defaultdict

import pytest

LIMITS = {"setup": 15.0, "call": 5.0}
"""Seconds of processor time that a test of the fast set may take, and its fixtures, which several tests share."""

NOISE = 1.5
"""A test fails beyond this many times its limit: the same test may cost half as much again on the same machine."""

REFERENCE_SECONDS = 0.14
"""What the loop of `_slowdown` takes on a quiet core of the machine that the limits were set on (Python 3.11)."""

SLOWEST = 10
"""Number of tests in the table at the end."""

COST = "processor_seconds"
MEMORY = "peak_mib"
GROUP = "group"


def pytest_addoption(parser):
    parser.addoption("--group", help="of the exhaustive tests, run this group only, as in exhaustive('networks')")


def pytest_collection_modifyitems(config, items):
    for item in items:
        item.user_properties.append((GROUP, _group(item)))
    wanted = config.getoption("group")
    if wanted is None:
        return
    groups = {_group(item) for item in items if item.get_closest_marker("exhaustive")}
    if wanted not in groups:
        raise pytest.UsageError(f"Unknown group {wanted!r}. Available: {', '.join(sorted(groups))}")
    others = [item for item in items if _group(item) != wanted]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if _group(item) == wanted]


def _group(item):
    """Return the argument of an exhaustive test's marker; 'slow' or 'fast' for the others."""
    marker = item.get_closest_marker("exhaustive")
    if marker is not None:
        return marker.args[0]
    return "slow" if item.get_closest_marker("slow") else "fast"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    return (yield from _measured(item, "setup"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    return (yield from _measured(item, "call"))


def _measured(item, when):
    """Record what a part of a test costs; fail the test if it is in the fast set and costs too much."""
    before = _processor_seconds()
    result = yield
    seconds = _processor_seconds() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    item.user_properties += [(COST, (when, seconds)), (MEMORY, peak)]
    limit = NOISE * LIMITS[when]
    if _group(item) == "fast" and seconds > limit and seconds > limit * _slowdown():
        pytest.fail(
            f"The {when} took {seconds:.1f} s of processor time; a test of the fast set may take {LIMITS[when]:g}. "
            "Use a smaller size, share a fixture, or mark the test slow.",
            pytrace=False,
        )
    return result


def _slowdown():
    """Return how many times longer than on a quiet core of the reference machine work takes right now; at least 1.

    Processes that share a core's caches cost each other processor time, too: up to twice as much on a busy machine.
    """
    started = time.process_time()
    sum(number * number for number in range(2_000_000))
    return max(1.0, (time.process_time() - started) / REFERENCE_SECONDS)


def _processor_seconds():
    return sum(os.times()[:4])  # user and system, of this process and of its children that have ended


def pytest_terminal_summary(terminalreporter):
    """Print a row a group, and the slowest tests."""
    reports = [each for some in terminalreporter.stats.values() for each in some if isinstance(each, pytest.TestReport)]
    groups, costs, peak = defaultdict(list), {}, 0
    for report in reports:
        properties = dict(report.user_properties)
        peak = max(peak, properties.get(MEMORY, 0))
        parts = dict(value for name, value in report.user_properties if name == COST)
        if report.when == "call" or report.outcome != "passed":
            costs[report.nodeid] = sum(parts.values())
            groups[properties[GROUP]].append(report)
    if not groups:
        return
    terminalreporter.section(f"processor time (largest worker {peak} MiB)")
    row = "{:24}{:>8}{:>8}{:>8}{:>10}"
    terminalreporter.write_line(row.format("group", "passed", "failed", "skipped", "seconds"))
    for name, tests in sorted(groups.items()):
        counts = [sum(test.outcome == outcome for test in tests) for outcome in ("passed", "failed", "skipped")]
        seconds = sum(costs[nodeid] for nodeid in {test.nodeid for test in tests})
        terminalreporter.write_line(row.format(name, *counts, f"{seconds:.1f}"))
    for nodeid, seconds in sorted(costs.items(), key=lambda pair: -pair[1])[:SLOWEST]:
        terminalreporter.write_line(f"{seconds:8.1f} s  {nodeid}")
