"""The tables of docs/reference.md against the code: what they list exists, and what exists is listed."""

import re
from pathlib import Path

from goals.app import OPS_ROUTES, PUBLIC_ROUTES
from goals.settings import Settings
from tests.conftest import ROOT

REFERENCE = (ROOT / "docs/reference.md").read_text(encoding="utf-8")


def table(heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, each as its cells."""
    section = REFERENCE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_every_setting_is_in_the_table_with_its_default_and_description() -> None:
    expected = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default in {None, ()} else f"`{field.default}`"
        expected.append([f"`{name.upper()}`", default, field.description])
    assert table("Settings") == expected


def test_every_endpoint_is_in_the_table_at_its_port() -> None:
    listed = {
        (int(port), method, path)
        for port, *cells in table("Endpoints")
        for method, path in re.findall(r"`([A-Z]+) (/[^`]*)`", " ".join(cells))
    }
    served = {
        (port, method, route.path)
        for port, routes in ((8080, PUBLIC_ROUTES), (9464, OPS_ROUTES))
        for route in routes
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert listed == served


def test_every_target_says_what_it_does() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(" ".join(re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)).split())
    described = set(re.findall(r"^([a-z0-9-]+):.*## ", makefile, re.MULTILINE))
    assert phony - described == {"help"}
    assert described <= phony


def test_every_make_target_that_the_documents_name_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for document in documents():
        named = set(re.findall(r"(?:`|^)make ((?:[a-z0-9-]+ ?)+)", document.read_text(encoding="utf-8"), re.MULTILINE))
        assert set(" ".join(named).split()) <= targets, document


def test_every_link_to_a_file_leads_somewhere() -> None:
    for document in documents():
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document}: {target}"


def documents() -> list[Path]:
    return [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
