"""Prints pip constraints that pin every dependency to its lower bound in pyproject.toml."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
requirements = [
    *project["build-system"]["requires"],
    *project["project"]["dependencies"],
    *project["project"]["optional-dependencies"]["test"],
]
for requirement in requirements:
    found = re.fullmatch(r"([\w-]+)>=([\w.]+)", requirement)
    assert found, f"{requirement}: not of the form name>=version"
    print(f"{found[1]}=={found[2]}")
