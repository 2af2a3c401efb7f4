"""Extract a release's notes from the changelog, and put a release's images into the site's file."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

CHANGELOG = Path("CHANGELOG.md")
# part azure
SITE = Path("k8s/overlays/aks/site/site.yaml")
KEYS = ("image", "loadtestImage")
"""The site's lines that name an image, in the order in which the command is given them."""
IMAGE = re.compile(r"[\w.-]+(?::\d+)?(?:/[\w.-]+)+:[\w.-]+@sha256:[0-9a-f]{64}")
# end azure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; if it fails, print the reason in one line and return 1."""
    parser = argparse.ArgumentParser(prog="python -m tools.release", description="A release.")
    commands = parser.add_subparsers(dest="command", required=True)
    of_notes = commands.add_parser("notes", help="print the changelog's section of a version")
    of_notes.add_argument("version", nargs="?", help="default: the newest version")
    of_notes.add_argument("--changelog", type=Path, default=CHANGELOG)
    # part azure
    of_images = commands.add_parser("images", help="put a release's images into the site's file")
    of_images.add_argument("images", nargs=len(KEYS), metavar="IMAGE")
    of_images.add_argument("--site", type=Path, default=SITE)
    # end azure
    options = parser.parse_args(arguments)
    try:
        if options.command == "notes":
            print(notes(options.changelog.read_text(encoding="utf-8"), options.version))
        # part azure
        else:
            text = with_images(options.site.read_text(encoding="utf-8"), options.images)
            options.site.write_text(text, encoding="utf-8")
        # end azure
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def notes(changelog: str, version: str | None = None) -> str:
    """Return the section of a version, or of the newest, without its heading (format: Keep a Changelog 1.1.0)."""
    name = r"\d[^]]*" if version is None else re.escape(version)
    found = re.search(rf"^## \[{name}\].*\n((?:(?!## ).*\n?)*)", changelog, re.MULTILINE)
    if found is None or not found[1].strip():
        wanted = version or "any version"
        heading = f"## [{version or '1.2.3'}] - YYYY-MM-DD"
        raise ValueError(f"CHANGELOG.md has no entry for {wanted}: add a section `{heading}`")
    return found[1].strip()


# part azure
def with_images(site: str, images: Sequence[str]) -> str:
    """Return the site's file with its images, which are named by tag and digest: a tag alone can be moved."""
    for key, image in zip(KEYS, images, strict=True):
        if not IMAGE.fullmatch(image):
            raise ValueError(f"{image!r} is not REGISTRY/NAME:VERSION@sha256:DIGEST")
        site, changed = re.subn(rf"^  {key}: .*$", f"  {key}: {image}", site, flags=re.MULTILINE)
        if changed != 1:
            raise ValueError(f"the site's file has {changed} lines `{key}:` instead of one")
    return site


# end azure
if __name__ == "__main__":
    sys.exit(main())
