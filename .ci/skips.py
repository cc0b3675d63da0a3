"""Fails when a test was skipped that may not be, or when no test ran. Argument: a JUnit XML report.

The only reason that is allowed begins with "data:", for tests of recorded market data, and only
where the folder that BRIER_DATA names is missing.
"""

import os
import sys
from pathlib import Path
from xml.etree import ElementTree

cases = list(ElementTree.parse(sys.argv[1]).iter("testcase"))
is_data_missing = not Path(os.environ["BRIER_DATA"]).is_dir()
wrong = []
for case in cases:
    for skipped in case.iter("skipped"):
        reason = skipped.get("message", "")
        if not (is_data_missing and reason.startswith("data:")):
            wrong.append(f"{case.get('classname')}::{case.get('name')}: skipped: {reason}")
if not cases:
    wrong.append("no test ran")
sys.exit("\n".join(wrong) or None)
