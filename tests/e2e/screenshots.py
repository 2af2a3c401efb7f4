"""Takes the pictures in docs/img/ as things are: the page, and the reports that are in out/ (`make screenshots`)."""

import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import expect

from tests.e2e.stage import ROOT, BrowserMissingError, open_browser, run_service

PICTURES: dict[str, dict[str, Any]] = {
    "page-light.png": {"color_scheme": "light", "viewport": {"width": 880, "height": 760}},
    "page-dark.png": {"color_scheme": "dark", "viewport": {"width": 880, "height": 760}},
    "page-phone.png": {"color_scheme": "light", "viewport": {"width": 390, "height": 760}, "is_mobile": True},
}
REPORTS: dict[str, tuple[str, dict[str, Any]]] = {
    # part loadtest
    "report-load.png": ("out/load/original/report.html", {"viewport": {"width": 940, "height": 1080}}),
    # end loadtest
    # part drills
    "report-drill.png": ("out/drills/failover.html", {"viewport": {"width": 940, "height": 1080}}),
    # end drills
    # part loadtest
    "report-bench.png": ("out/bench.html", {"viewport": {"width": 940, "height": 1080}, "color_scheme": "dark"}),
    # end loadtest
    # part drills
    "report-phone.png": ("out/drills/failover.html", {"viewport": {"width": 390, "height": 844}, "is_mobile": True}),
    # end drills
}
"""One that no command has written yet keeps its picture."""
# Days that stand still: a picture changes when the page does.
GOALS = """INSERT INTO goals (goal_name, created_at) VALUES
    ('Read twelve books this year', '2026-01-02 09:00Z'),
    ('Learn to bake sourdough that rises', '2026-01-02 09:01Z'),
    ('Save three months of rent', '2026-02-14 18:30Z'),
    ('Call Mum every Sunday', '2026-03-01 20:15Z'),
    ('Repair the bicycle instead of buying another', '2026-03-01 20:16Z'),
    ('Swim a kilometre without stopping', '2026-04-06 06:45Z'),
    ('Write one page every morning, and do not read it again until the month is over', '2026-04-06 06:50Z')"""


def take(folder: Path) -> None:
    """Take every picture into `folder`, at twice the pixels, for sharp screens."""
    with open_browser() as browser, run_service() as service:
        service.execute(GOALS)
        for name, options in PICTURES.items():
            page = browser.new_page(base_url=service.url, device_scale_factor=2, **options)
            page.goto("/")
            expect(page.get_by_role("heading", name="7 goals")).to_be_visible()
            page.screenshot(path=folder / name)
            page.close()
            sys.stdout.write(f"{(folder / name).relative_to(ROOT)}\n")
        for name, (report, options) in REPORTS.items():
            if (ROOT / report).exists():
                page = browser.new_page(**options)
                page.goto((ROOT / report).as_uri())
                page.screenshot(path=folder / name)
                page.close()
                sys.stdout.write(f"{(folder / name).relative_to(ROOT)}\n")


if __name__ == "__main__":
    try:
        take(ROOT / "docs" / "img")
    except BrowserMissingError as error:
        sys.exit(f"error: {error}")
