"""What several modules of these tests begin with: a copy of the manifests to break, and what a cluster gets of them."""

import itertools
import shutil
from pathlib import Path

import pytest

from tools.lint import __main__ as lint
from tools.lint.manifests import IGNORED, ROOT, Manifest, render_all


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the folder k8s, and of what stands beside it, to break."""
    for source in (ROOT, ROOT.parent / "observability"):
        shutil.copytree(source, tmp_path / source.name, ignore=IGNORED)
    return tmp_path / ROOT.name


@pytest.fixture(scope="session")
def everything() -> dict[str, list[Manifest]]:
    """All that is in a cluster at some time, by its folder."""
    return render_all(ROOT, [ROOT / folder for folder in dict.fromkeys(itertools.chain(*lint.TOGETHER))])
