"""Hold the locks against the known vulnerabilities, and never call a package clean that nobody could look up.

pip-audit asks OSV about each package, and exits 0 where it could not ask; this tells the three outcomes apart.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OSV = "https://api.osv.dev/v1/query"
LOCKS = sorted(Path("requirements").glob("*.txt"))

CLEAN = 0
VULNERABLE = 1
UNKNOWN = 3

ACCEPTED: dict[str, str] = {}
"""Vulnerabilities that do not concern us, by their id, each with the reason why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what is known about the locked packages.

    Return 0 where nothing is, 1 where a vulnerability is, and 3 where the source of advisories could not be asked about
    every package (0 with `--allow-unknown`, which says so all the same).
    """
    parser = argparse.ArgumentParser(prog="python -m tools.audit", description="Known vulnerabilities of the locks.")
    parser.add_argument("locks", nargs="*", type=Path, default=LOCKS, metavar="LOCK", help="hashed requirements")
    parser.add_argument("--source", default=OSV, metavar="URL", help=f"where OSV's query API is ({OSV})")
    parser.add_argument("--allow-unknown", action="store_true", help="exit 0 if the source cannot be reached")
    options = parser.parse_args(arguments)

    for lock in options.locks:
        if not lock.is_file() or "--hash=sha256:" not in lock.read_text(encoding="utf-8"):
            parser.error(f"{lock} is no lock: name a requirements file with a hash for each package")
    print(f"asking {options.source} about {', '.join(map(str, options.locks))}", flush=True)
    report, reason = ask(options.locks, options.source)
    known = {(package["name"], package["version"]): package["vulns"] for package in report if "vulns" in package}
    for (name, version), vulnerabilities in sorted(known.items()):
        for vulnerability in vulnerabilities:
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version"
            print(f"{name} {version}: {vulnerability['id']}, fixed in {fixed}: {vulnerability['description']}")
    for number, why in ACCEPTED.items():
        print(f"{number}: accepted, for {why}")
    if any(known.values()):
        return VULNERABLE
    if reason:
        print(f"NOT AUDITED: {reason}. Nothing is known about these packages; run it where the source answers.")
        return CLEAN if options.allow_unknown else UNKNOWN
    print(f"no known vulnerability in {len(known)} packages")
    return CLEAN


def ask(locks: Sequence[Path], source: str) -> tuple[list[dict[str, Any]], str]:
    """Return pip-audit's entry for each package, and why there are none for some (empty where all were answered)."""
    requirements = [word for lock in locks for word in ("--requirement", str(lock))]
    accepted = [word for number in ACCEPTED for word in ("--ignore-vuln", number)]
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--vulnerability-service", "osv"]
    command += ["--osv-url", source, "--format", "json", "--progress-spinner", "off", *accepted, *requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments, no shell
    try:
        report = json.loads(done.stdout)["dependencies"]
    except ValueError:
        # A source that cannot be reached is a traceback to pip-audit; its last line has the cause.
        cause = (done.stderr.strip() or f"pip-audit exited {done.returncode} without a word").splitlines()[-1]
        return [], f"{source} was not reached ({cause})"
    skipped = [package for package in report if "skip_reason" in package]
    return report, f"{len(skipped)} packages were skipped ({skipped[0]['skip_reason']})" if skipped else ""


if __name__ == "__main__":
    sys.exit(main())
