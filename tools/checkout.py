"""Another version of the service in a folder of its own: copied there, and run from there.

`python -m tools.checkout ROOT MODULE [ARGUMENT...]` runs a module of it. The modules of that version come before the
installed ones, and its folder is the current one; what runs the tests or the drills comes from this tree.
"""

import os
import runpy
import shutil
import sys
from pathlib import Path

SOURCES = ("services", "alembic", "alembic.ini")
"""What makes a version of the service: its code and its migrations."""


def copy_tree(root: Path, folder: Path) -> None:
    """Copy the service and its migrations as they are now."""
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
