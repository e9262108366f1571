"""Stage parity: the tests marked gpu, one line each."""

from __future__ import annotations

import os
import sys
from typing import Any

from gpu_setup import Job, job


class Lines:
    """A plugin of pytest that notes each test as soon as it has ended."""

    def __init__(self, one: Job):
        self.job = one

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        text = ""
        if report.skipped:
            text = str(report.longrepr[2]).removeprefix("Skipped: ")
        elif report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            text = " ".join((crash.message if crash else str(report.longrepr)).split())[:500]
        self.job.test(report.nodeid.split("::", 1)[1], report.outcome, text)


def main() -> None:
    one = job("parity")
    some = []
    if one.rehearse:
        os.environ["SOUL_GPU_TESTS"] = "cpu"
        some = [
            "-k",
            "float64 and soul and npo or adapters or greedy or 48 or offload-adamw or muon-npo or cudnn-trees",
        ]
    import pytest

    sys.exit(pytest.main(["-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/test_gpu.py", *some], [Lines(one)]))


if __name__ == "__main__":
    main()
