"""Tests of documents that depend on how their author writes; one line switches them off."""

import pytest

PROSE = True

prose = pytest.mark.skipif(not PROSE, reason="tests/prose.py says that prose is not tested")
"""Links, commands, settings, metrics and figures are tested in any case."""
