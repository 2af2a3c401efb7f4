"""Pin the workflows' actions to the commits of their versions, which are looked up in each action's repository."""

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

WORKFLOWS = Path(".github/workflows")
HOST = "https://github.com"
USES = re.compile(r"(?P<before>uses: (?P<repository>[\w.-]+/[\w.-]+)[\w./-]*@)(?P<version>v[\w.]+)$", re.MULTILINE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite `uses: owner/action@v1` as `uses: owner/action@COMMIT # v1.2.3`; return 1 if one is not found."""
    parser = argparse.ArgumentParser(prog="python -m tools.pins", description="Pin the workflows' actions.")
    parser.add_argument("--host", default=HOST, metavar="URL", help=f"host of the actions (default: {HOST})")
    parser.add_argument("--workflows", type=Path, default=WORKFLOWS, metavar="FOLDER", help=f"default: {WORKFLOWS}")
    options = parser.parse_args(arguments)

    texts = {path: path.read_text(encoding="utf-8") for path in sorted(options.workflows.glob("*.yaml"))}
    wanted = {(found["repository"], found["version"]) for text in texts.values() for found in USES.finditer(text)}
    pins = {}
    for repository, version in sorted(wanted):
        try:
            pins[repository, version] = look_up(f"{options.host}/{repository}", version)
        except LookupError as error:
            print(f"error: {repository}@{version}: {error}; nothing was changed", file=sys.stderr)
            return 1
        print(f"{repository}@{version} is {pins[repository, version]}")
    for path, text in texts.items():
        pinned = USES.sub(lambda found: found["before"] + pins[found["repository"], found["version"]], text)
        path.write_text(pinned, encoding="utf-8")
    return 0


def look_up(url: str, version: str) -> str:
    """Return `COMMIT # VERSION`, where the version is the longest tag of that commit.

    Raises:
        LookupError: the repository cannot be read, or has no such tag.

    """
    command = ["git", "ls-remote", "--tags", url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments, no shell
    if done.returncode:
        raise LookupError((done.stderr.strip() or "git ls-remote failed").splitlines()[-1])
    commits = {}
    for line in done.stdout.splitlines():
        commit, _, name = line.partition("\t")
        # An annotated tag is a separate object; the line after it, which ends in ^{}, contains its commit.
        commits[name.removeprefix("refs/tags/").removesuffix("^{}")] = commit
    if version not in commits:
        raise LookupError("no such tag")
    names = [name for name, commit in commits.items() if commit == commits[version] and re.match(r"v[\d.]+$", name)]
    return f"{commits[version]} # {max(names, key=len, default=version)}"


if __name__ == "__main__":
    sys.exit(main())
