"""`make wheels`: check that `make up`, `make test` and `make load` find wheels on each platform of docs/reference.md.

uv queries the package index for each pin of the locks. If there is no wheel, pip needs a compiler to build the package.
"""

import itertools
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LOCKS = [
    *(Path("requirements") / f"{name}.txt" for name in ("uv", "local", "dev")),
    # part loadtest
    Path("requirements/loadtest.txt"),
    # end loadtest
]
PLATFORMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28", "aarch64-apple-darwin")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
WITHOUT: dict[tuple[str, str, str], str] = {
    ("gevent", "aarch64-apple-darwin", "3.11"): "its wheels for Apple Silicon begin with Python 3.12",
}
"""The reason why a package has no wheel for a platform and a Python; docs/reference.md lists these."""


def main() -> None:
    uv, *names = sys.argv[1:]
    machines = list(itertools.product([Path(name) for name in names] or LOCKS, PLATFORMS, PYTHONS))
    with ThreadPoolExecutor(4) as pool:
        problems = list(pool.map(lambda machine: find_missing(uv, *machine), machines))
    for (lock, platform, python), problem in zip(machines, problems, strict=True):
        if problem:
            print(f"{lock} on {platform} with Python {python}: {problem}")
    for (package, platform, python), reason in WITHOUT.items():
        print(f"no wheel: {package} on {platform} with Python {python}: {reason}")
    if any(problems):
        sys.exit(1)
    print(f"{len(machines)} of {len(machines)}: each lock has wheels for each platform and Python")


def find_missing(uv: str, lock: Path, platform: str, python: str) -> str:
    """Return uv's message about the first pin without a wheel there; empty if all have one."""
    without = {package for package, *where in WITHOUT if where == [platform, python]}
    pins = re.findall(r"^([^\s#=]+)(==\S+(?: ; [^\\\n]*)?)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    command = [uv, "pip", "compile", "--quiet", "--no-deps", "--only-binary", ":all:", "--no-header"]
    done = subprocess.run(  # noqa: S603  the uv of the Makefile, on files of this repository
        [*command, "--python-platform", platform, "--python-version", python, "-"],
        input="".join(f"{name}{pin}\n" for name, pin in pins if name not in without),
        capture_output=True,
        text=True,
        check=False,
    )
    return " ".join(done.stderr.split()) if done.returncode else ""


if __name__ == "__main__":
    main()
