"""Runs a module of another version of the service: `python -m drills.version ROOT MODULE [ARGUMENT...]`.

The modules of that version come before the installed ones, and its folder is the current one; the drills' own modules
come from this tree.
"""

import os
import runpy
import sys

if __name__ == "__main__":
    root, module, *arguments = sys.argv[1:]
    os.chdir(root)
    sys.path.insert(0, os.path.join(root, "services"))  # noqa: PTH118  nothing more is imported before that version's own
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
