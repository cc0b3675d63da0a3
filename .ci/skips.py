"""Fails when a test was skipped that may not be, or when no test ran. Argument: a JUnit XML report.

A reason that is allowed begins with "data:", for tests of recorded market data, where the folder
that BRIER_DATA names is missing; or with "netns:", "tmpfs:" or "strace:", for tests with hosts of
their own, disks of their own, or calls that fail, where this machine lets nobody make a network
namespace, mount a disk in a namespace, or trace.
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
PROBES = {
    "netns:": ["unshare", "--net", "true"],
    "tmpfs:": ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"],
    "strace:": ["strace", "-qq", "-e", "trace=none", "true"],
}
for prefix, command in PROBES.items():
    if subprocess.run(command, check=False, capture_output=True).returncode:
        allowed.append(prefix)
wrong = []
for case in cases:
    for skipped in case.iter("skipped"):
        reason = skipped.get("message", "")
        if not reason.startswith(tuple(allowed)):
            wrong.append(f"{case.get('classname')}::{case.get('name')}: skipped: {reason}")
if not cases:
    wrong.append("no test ran")
sys.exit("\n".join(wrong) or None)
