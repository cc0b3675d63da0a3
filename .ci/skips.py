"""Fails when a test was skipped that may not be, or when no test ran. Argument: a JUnit XML report.

A reason that is allowed begins with "data:", for tests of recorded market data, where the folder
that BRIER_DATA names is missing; or with "netns:", for tests with hosts of their own, where this
machine lets nobody make a network namespace.
"""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

cases = list(ElementTree.parse(sys.argv[1]).iter("testcase"))
allowed = []
if not Path(os.environ["BRIER_DATA"]).is_dir():
    allowed.append("data:")
if subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True).returncode:
    allowed.append("netns:")
wrong = []
for case in cases:
    for skipped in case.iter("skipped"):
        reason = skipped.get("message", "")
        if not reason.startswith(tuple(allowed)):
            wrong.append(f"{case.get('classname')}::{case.get('name')}: skipped: {reason}")
if not cases:
    wrong.append("no test ran")
sys.exit("\n".join(wrong) or None)
