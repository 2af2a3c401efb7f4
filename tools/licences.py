"""Say under which licence each package comes that our images ship, and stop at one that was not considered."""

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
"""What an image may ship, in SPDX's words: all ask to be named, MPL-2.0 for the source of its files too."""

WORDS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
"""What older metadata says instead of an SPDX identifier; of the BSD ones ours all have three clauses."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table of packages, versions and licences; return 1 where one is missing or was not considered."""
    parser = argparse.ArgumentParser(prog="python -m tools.licences", description="Licences in the images.")
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
        print(f"{requirement.name:<44} {distribution.version:<12} {licence or 'says nothing'}{verdict}")
    return int(refused > 0)


def required(lock: Path) -> list[Requirement]:
    """Return the lock's requirements that concern this platform; those of others are not installed to be asked."""
    lines = re.findall(r"^[a-zA-Z0-9][^\\\n]*", lock.read_text(encoding="utf-8"), re.MULTILINE)
    requirements = [Requirement(line.strip()) for line in lines]
    return [each for each in requirements if each.marker is None or each.marker.evaluate()]


def licence_of(metadata: importlib.metadata.PackageMetadata) -> str:
    """Return the licence in SPDX's words where metadata of any age says one, else what it says, or nothing."""
    # Asked for first: a name that is missing is a warning on newer Pythons.
    named = next((metadata[name] for name in ("License-Expression", "License") if name in metadata), "")
    if not named or "\n" in named:  # some put the licence's whole text there; then a classifier has its name
        classifiers = [each for each in metadata.get_all("Classifier", []) if each.startswith("License :: ")]
        names = [each.rpartition(" :: ")[2] for each in classifiers]
        return " AND ".join(WORDS.get(name, name) for name in names)
    return WORDS.get(named, named)


if __name__ == "__main__":
    sys.exit(main())
