"""Check the locked packages for known vulnerabilities, and never report a package that was not looked up as clean.

pip-audit queries OSV for each package, and exits 0 even if it could not; this module distinguishes the three outcomes.
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
"""The reason why a vulnerability does not affect us, by the vulnerability's id."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the known vulnerabilities of the locked packages.

    Return 0 if none is known, 1 if at least one is, and 3 if the source of advisories could not be queried for every
    package (0 with `--allow-unknown`, which still prints a warning).
    """
    parser = argparse.ArgumentParser(prog="python -m tools.audit", description="Audit the locked packages.")
    parser.add_argument("locks", nargs="*", type=Path, default=LOCKS, metavar="LOCK", help="requirements with hashes")
    parser.add_argument("--source", default=OSV, metavar="URL", help=f"OSV's query API (default: {OSV})")
    parser.add_argument("--allow-unknown", action="store_true", help="exit with 0 if the source cannot be reached")
    options = parser.parse_args(arguments)

    for lock in options.locks:
        if not lock.is_file() or "--hash=sha256:" not in lock.read_text(encoding="utf-8"):
            parser.error(f"{lock} is not a lock file: name a requirements file with a hash for each package")
    print(f"querying {options.source} for {', '.join(map(str, options.locks))}", flush=True)
    report, reason = ask(options.locks, options.source)
    known = {(package["name"], package["version"]): package["vulns"] for package in report if "vulns" in package}
    for (name, version), vulnerabilities in sorted(known.items()):
        for vulnerability in vulnerabilities:
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version"
            print(f"{name} {version}: {vulnerability['id']}, fixed in {fixed}: {vulnerability['description']}")
    for number, why in ACCEPTED.items():
        print(f"{number}: accepted, because {why}")
    if any(known.values()):
        return VULNERABLE
    if reason:
        print(f"NOT AUDITED: {reason}. These packages may be vulnerable; run this where the source can be reached.")
        return CLEAN if options.allow_unknown else UNKNOWN
    print(f"no known vulnerability in {len(known)} packages")
    return CLEAN


def ask(locks: Sequence[Path], source: str) -> tuple[list[dict[str, Any]], str]:
    """Return pip-audit's entry for each package, and why some packages have none (empty if all have one)."""
    requirements = [word for lock in locks for word in ("--requirement", str(lock))]
    accepted = [word for number in ACCEPTED for word in ("--ignore-vuln", number)]
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--vulnerability-service", "osv"]
    command += ["--osv-url", source, "--format", "json", "--progress-spinner", "off", *accepted, *requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments, no shell
    try:
        report = json.loads(done.stdout)["dependencies"]
    except ValueError:
        # If the source cannot be reached, pip-audit prints a traceback, whose last line contains the cause.
        cause = (done.stderr.strip() or f"pip-audit exited with {done.returncode} and no message").splitlines()[-1]
        return [], f"{source} could not be reached ({cause})"
    skipped = [package for package in report if "skip_reason" in package]
    return report, f"{len(skipped)} packages were skipped ({skipped[0]['skip_reason']})" if skipped else ""


if __name__ == "__main__":
    sys.exit(main())
