"""A pytest plug-in for runs that may be cut off: it reports failures at once.

It prints each failure when it happens, and keeps a summary in the file that `OUTCOMES` names.
"""

import os
import time
from collections import Counter
from pathlib import Path

import pytest

MAX_FAILURES = 40
MAX_LINES = 60
_counts: Counter[str] = Counter()
_failures: list[str] = []
_slowest: list[tuple[float, str]] = []
_started = time.monotonic()
_first: list[float] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count a phase of a test. With several processes, only the first one has the file."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    _first.append(time.monotonic() - _started)
    del _first[1:]
    if report.failed:
        lines = report.longreprtext.splitlines()
        print(f"\n--- {report.nodeid}, {report.when}", *lines[-MAX_LINES:], sep="\n", flush=True)
        _failures.append(f"{_short(report)}, {report.when}: {_reason(report)}")
    if report.failed or report.skipped or report.when == "call":
        _counts[report.outcome] += 1
    _slowest.append((report.duration, f"{_short(report)}, {report.when}"))
    _write()


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        _counts["not collected"] += 1
        _failures.append(f"{_short(report)}: {report.longreprtext.splitlines()[-1]}")
        _write()


def _short(report: pytest.TestReport | pytest.CollectReport) -> str:
    return report.nodeid.rpartition("/")[2]


def _reason(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    message = crash.message if crash is not None else report.longreprtext
    return " ".join(message.split())[:220]


def _write() -> None:
    counts = ", ".join(f"{number} {outcome}" for outcome, number in sorted(_counts.items()))
    begun = f", the first after {_first[0]:.0f} s" if _first else ""
    lines = [f"{counts} after {time.monotonic() - _started:.0f} s{begun}"]
    lines += [f"  {line}" for line in _failures[:MAX_FAILURES]]
    lines += [f"  and {len(_failures) - MAX_FAILURES} more"] * (len(_failures) > MAX_FAILURES)
    _slowest.sort(reverse=True)
    del _slowest[3:]
    lines += [f"  slow: {seconds:.1f} s {name}" for seconds, name in _slowest]
    Path(os.environ["OUTCOMES"]).write_text("\n".join(lines) + "\n", encoding="utf-8")
