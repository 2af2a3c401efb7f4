"""Copy a version of the service to a separate folder, and run it from there.

`python -m tools.checkout ROOT MODULE [ARGUMENT...]` runs one of its modules. ROOT becomes the working directory, and
its modules take precedence over the installed ones; what runs the tests or the drills comes from this tree.
"""

import os
import runpy
import shutil
import sys
from pathlib import Path

SOURCES = ("services", "alembic", "alembic.ini")
"""The files of a version of the service: its code and its migrations."""


def copy_tree(root: Path, folder: Path) -> None:
    """Copy the current service and its migrations."""
    for name in SOURCES:
        if (root / name).is_dir():
            shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copy(root / name, folder / name)


if __name__ == "__main__":
    root, module, *arguments = sys.argv[1:]
    os.chdir(root)
    sys.path[:0] = [os.path.join(root, "services"), root]  # noqa: PTH118  nothing more is imported before that version's own
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
