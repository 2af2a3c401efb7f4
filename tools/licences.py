"""List the licence of each package that our images contain, and fail if one was not considered."""

import argparse
import importlib.metadata
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement

LOCKS = [
    Path("requirements/goals.txt"),
    # part loadtest
    Path("requirements/loadtest.txt"),
    # end loadtest
]

CONSIDERED = {"0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MPL-2.0", "PSF-2.0", "ZPL-2.1"}
"""SPDX identifiers that an image may contain: all require attribution, and MPL-2.0 also the source of its files."""

WORDS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
"""SPDX identifiers for the names in older metadata; all our packages with "BSD License" use the three-clause one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table of packages, versions and licences; return 1 if a licence is missing or was not considered."""
    parser = argparse.ArgumentParser(prog="python -m tools.licences", description="List licences in the images.")
    parser.add_argument("locks", nargs="*", type=Path, default=LOCKS, metavar="LOCK", help="pinned requirements")
    locks = parser.parse_args(arguments).locks
    shipped = {requirement.name: requirement for lock in locks for requirement in required(lock)}
    refused = 0
    for requirement in sorted(shipped.values(), key=str):
        distribution = importlib.metadata.distribution(requirement.name)
        licence = licence_of(distribution.metadata)
        unconsidered = set(re.split(r"[ ()]+", licence)) - CONSIDERED - {"AND", "OR", "WITH", ""}
        verdict = "  NOT CONSIDERED (tools/licences.py)" if unconsidered or not licence else ""
        refused += bool(verdict)
        print(f"{requirement.name:<44} {distribution.version:<12} {licence or 'none stated'}{verdict}")
    return int(refused > 0)


def required(lock: Path) -> list[Requirement]:
    """Return the lock's requirements that apply to this platform; those of others are not installed here."""
    lines = re.findall(r"^[a-zA-Z0-9][^\\\n]*", lock.read_text(encoding="utf-8"), re.MULTILINE)
    requirements = [Requirement(line.strip()) for line in lines]
    return [each for each in requirements if each.marker is None or each.marker.evaluate()]


def licence_of(metadata: importlib.metadata.PackageMetadata) -> str:
    """Return the SPDX identifier of the licence if the metadata has one, else the stated name, or an empty string."""
    # Check membership first: newer Python versions warn about a missing name.
    named = next((metadata[name] for name in ("License-Expression", "License") if name in metadata), "")
    if not named or "\n" in named:  # some packages put the licence's full text there, and its name in a classifier
        classifiers = [each for each in metadata.get_all("Classifier", []) if each.startswith("License :: ")]
        names = [each.rpartition(" :: ")[2] for each in classifiers]
        return " AND ".join(WORDS.get(name, name) for name in names)
    return WORDS.get(named, named)


if __name__ == "__main__":
    sys.exit(main())
