"""Create your own service from this tree: copied to a new folder, renamed, without the parts that you leave out."""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools import ROOT
from tools.naming import Names, find_collisions, find_errors, plural_of
from tools.parts import OPTIONAL, PARTS, PATCH, Tree, complete

GENERATORS = ("observability.generate",)
"""Modules of the copy that generate files again, because their order depends on the names."""
RULES = ("F401", "I", "RUF022", "SIM102", "SIM108", "SIM117")
"""Ruff's rules that depend on the order or the length of names, or on imports that only a part needed."""
RUFF = Path(sys.executable).parent / "ruff"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make new", description=__doc__)
    parser.add_argument("--name", default="", help="name of the service: package, table, routes, metrics")
    parser.add_argument("--noun", default="", help="singular noun for the items that it stores")
    parser.add_argument("--plural", default="", help="plural of the noun (default: the regular plural)")
    parser.add_argument("--dir", default="", help="new folder (default: next to this one)")
    parser.add_argument("--without", default="", help=f"parts to leave out: {' '.join(PARTS.keys() - OPTIONAL)}")
    parser.add_argument("--with", dest="included", default="", help=f"optional parts to include: {' '.join(OPTIONAL)}")
    options = parser.parse_args(arguments)
    if not options.name or not options.noun:
        print("error: name the service and its items: make new NAME=orders NOUN=order", file=sys.stderr)
        return 1
    names = Names(options.name, options.noun, options.plural or plural_of(options.noun))
    folder = Path(options.dir or ROOT.parent / names.name).expanduser().resolve()
    without, included = set(options.without.split()), set(options.included.split())
    left_out = complete(without | OPTIONAL - included)
    tree = Tree.read(left_out)
    errors = [
        *(f"WITHOUT={part}: unknown part; the parts are {' '.join(PARTS)}" for part in sorted(without - PARTS.keys())),
        *(f"WITH={part}: not an optional part; these are {' '.join(OPTIONAL)}" for part in sorted(included - OPTIONAL)),
        *find_errors(names, tree.sources),
        *find_obstacles(folder),
    ]
    # Words that cannot be names at all would cause too many collisions.
    errors = errors or [*find_collisions(names, tree.texts)]
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if errors:
        return 1
    write(tree.texts, tree.modes, names, folder)
    tidy(folder)
    finish(folder)
    commit(folder, names)
    translate_patch(tree, names, folder)
    print(f"{folder}: the service {names.name}, which stores {names.plural}")
    print(f"left out: {', '.join(part for part in PARTS if part in left_out) or 'nothing'}")
    print(f"next: cd {os.path.relpath(folder)} && make up")
    return 0


def find_obstacles(folder: Path) -> list[str]:
    """Return one line for each reason why the folder cannot be created."""
    obstacles = []
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        obstacles.append(f"DIR={folder}: the folder already exists and is not empty")
    if folder.is_relative_to(ROOT):
        obstacles.append(f"DIR={folder}: the folder is within this project; choose one outside it")
    command = ["git", "-c", "user.useConfigOnly=true", "var", "GIT_AUTHOR_IDENT"]
    if subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode:  # noqa: S603  a constant
        obstacles.append("git has no identity: run git config --global user.name NAME, and user.email ADDRESS")
    return obstacles


def write(texts: Mapping[str, str], modes: Mapping[str, int], names: Names, folder: Path) -> None:
    """Write each text to its new path, with its words renamed."""
    for path, text in texts.items():
        target = folder / names.rename(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(names.rename(text), encoding="utf-8")
        target.chmod(modes.get(path, 0o644))


def tidy(folder: Path) -> None:
    """Sort and wrap the code again, because the new words differ in order and length, and drop unused imports."""
    rules = ",".join(RULES)
    run(folder, RUFF, "check", "--quiet", "--fix-only", "--unsafe-fixes", "--select", rules, ".")
    run(folder, RUFF, "format", "--quiet", ".")


def finish(folder: Path) -> None:
    """Allow lines that the new words have made too long, and generate the generated files again."""
    command = [str(RUFF), "check", "--quiet", "--select", "E501", "."]
    if subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode:  # noqa: S603  a constant
        project = folder / "pyproject.toml"
        rule = '  "E501",  # the formatter wraps code; longer names have made comments and texts longer\n'
        text = project.read_text(encoding="utf-8").replace("\nignore = [\n", f"\nignore = [\n{rule}")
        project.write_text(text, encoding="utf-8")
    for module in GENERATORS:
        run(ROOT, sys.executable, "-B", "-m", "tools.checkout", folder, module)


def translate_patch(tree: Tree, names: Names, folder: Path) -> None:
    """Convert the patch of the worked example for the copy: compare this tree with the patch and without it."""
    patched = tree.with_patch(tree.sources[PATCH])
    changed = {path: text for path, text in patched.texts.items() if text != tree.texts.get(path)}
    write(changed, {}, names, folder)
    tidy(folder)
    run(folder, "git", "add", "--all")
    command = ["git", "diff", "--cached"]
    patch = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout  # noqa: S603  a constant
    run(folder, "git", "reset", "--quiet", "--hard")
    (folder / PATCH).write_text(patch, encoding="utf-8")
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--amend", "--no-edit")


def commit(folder: Path, names: Names) -> None:
    run(folder, "git", "init", "--quiet", "--initial-branch", "main")
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", f"Start {names.name} from a template")


def run(folder: Path, *command: object) -> None:
    words = [str(word) for word in command]
    subprocess.run(words, cwd=folder, stdout=subprocess.DEVNULL, check=True)  # noqa: S603  constants of this module


if __name__ == "__main__":
    sys.exit(main())
