"""Everyone can use the page: axe's rules, contrast, focus, forced colours, small screens, large type."""

import re
from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect

from tests.e2e.conftest import Options, Visit, Watch
from tests.e2e.stage import Service

UNBROKEN = "Sauerteigbrot" * 19  # 247 characters and no place for a line to break
AXE_OPTIONS = {"rules": {"target-size": {"enabled": True}}}  # WCAG 2.2's, which axe leaves off unless it is asked for

State = Callable[[Visit, Service, Options], Page]


def empty(visit: Visit, _service: Service, options: Options) -> Page:
    return visit(**options)


def full(visit: Visit, service: Service, options: Options) -> Page:
    service.execute(
        """ALTER TABLE goals ALTER COLUMN created_at DROP NOT NULL; -- as of a goal that is older than the column
        INSERT INTO goals (goal_name, created_at)
        SELECT 'Goal ' || n, now() - interval '1 day' FROM generate_series(1, 60) AS n
        UNION ALL
        VALUES (repeat('Sauerteigbrot', 19), now()), ('تعلّم العربية', now()), ('Before there were dates', NULL)"""
    )
    return visit(**options)


def older(visit: Visit, service: Service, options: Options) -> Page:
    page = full(visit, service, options)
    page.get_by_role("link", name="Older", exact=True).click()
    expect(page).to_have_title(re.compile("^Older goals"))
    return page


def added(visit: Visit, service: Service, options: Options) -> Page:
    page = full(visit, service, options)
    page.get_by_role("textbox").fill("Learn to sail")
    page.get_by_role("textbox").press("Enter")
    expect(page.get_by_role("status")).to_have_text("Added “Learn to sail”")
    return page


def removed(visit: Visit, service: Service, options: Options) -> Page:
    page = added(visit, service, options)
    page.get_by_role("button", name="Remove Learn to sail").press("Enter")
    expect(page.get_by_role("status")).to_have_text("Removed “Learn to sail”")
    return page


def refused(visit: Visit, service: Service, options: Options) -> Page:
    page = full(visit, service, options)
    page.get_by_role("textbox").fill("a" * 300)
    page.get_by_role("textbox").press("Enter")
    expect(page).to_have_title("Error: Goals")
    return page


def unavailable(visit: Visit, service: Service, options: Options) -> Page:
    page = visit(**options)
    with service.writes_held_up():
        page.get_by_role("textbox").fill(UNBROKEN)
        page.get_by_role("textbox").press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("The goals are not available right now")
    return page


def missing(visit: Visit, _service: Service, options: Options) -> Page:
    return visit("/nothing", **options)


def edited(visit: Visit, service: Service, options: Options) -> Page:
    full(visit, service, options)
    page = visit("/goals/61", **options)
    expect(page.get_by_role("textbox", name="Goal")).to_have_value(UNBROKEN)
    return page


def overtaken(visit: Visit, service: Service, options: Options) -> Page:
    page = edited(visit, service, options)
    service.execute("UPDATE goals SET goal_name = goal_name || '!' WHERE id = 61")
    page.get_by_role("textbox").fill("Bake")
    page.get_by_role("textbox").press("Enter")
    expect(page.get_by_role("button", name="Save anyway")).to_be_visible()
    return page


STATES = [empty, full, older, added, removed, refused, unavailable, missing, edited, overtaken]
STILL = {"reduced_motion": "reduce"}  # so that a colour is measured, not one on its way there


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> Options:
    return STILL | {"color_scheme": request.param}


@pytest.fixture(autouse=True)
def _expect_refusals(watch: Watch) -> None:
    watch.expected = {404, 409, 422, 503}


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_axe_finds_nothing(visit: Visit, service: Service, state: State, scheme: Options) -> None:
    page = state(visit, service, scheme)
    found = Axe().run(page, options=AXE_OPTIONS)
    assert found.violations_count == 0, found.generate_report()
    assert len(found.response["passes"]) > 15, "axe has hardly looked"
    assert {rule["id"]: rule["nodes"] for rule in found.response["incomplete"]} == {}


def test_axe_finds_what_is_broken(visit: Visit) -> None:
    page = visit()
    page.evaluate("document.documentElement.lang = ''; document.querySelector('h2').style.color = 'silver'")
    found = {rule["id"] for rule in Axe().run(page, options=AXE_OPTIONS).response["violations"]}
    assert found == {"html-has-lang", "color-contrast"}


Colour = tuple[float, ...]


def parse(colour: str, behind: Colour = ()) -> Colour:
    """Red, green and blue, from 0 to 1, of a computed colour as it looks on what is behind it."""
    numbers = re.fullmatch(r"rgba?\((\d+), (\d+), (\d+)(?:, ([\d.]+))?\)", colour)
    assert numbers is not None, colour
    opacity = float(numbers[4] or 1)
    own = [int(number) / 255 for number in numbers.groups()[:3]]
    return tuple(part * opacity + other * (1 - opacity) for part, other in zip(own, behind or own, strict=True))


def colour(element: Locator, name: str) -> Colour:
    return parse(element.evaluate("(element, name) => getComputedStyle(element)[name]", name))


def contrast(one: Colour, other: Colour) -> float:
    """The contrast ratio of WCAG 2.2, from 1 to 21."""

    def luminance(rgb: Colour) -> float:
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("state", [added, refused], ids=lambda state: state.__name__)
def test_controls_stand_out(visit: Visit, service: Service, state: State, scheme: Options) -> None:
    """WCAG 1.4.11: what shows where a control is has a contrast of 3:1, which axe does not measure."""
    page = state(visit, service, scheme)
    paper = colour(page.locator("body"), "backgroundColor")
    field = page.get_by_role("textbox")
    field.blur()
    assert contrast(colour(field, "borderTopColor"), paper) >= 3
    assert contrast(colour(field, "borderTopColor"), colour(field, "backgroundColor")) >= 3
    assert contrast(colour(page.get_by_role("button", name="Add goal"), "backgroundColor"), paper) >= 3


@pytest.mark.parametrize("state", [added, refused, unavailable, overtaken], ids=lambda state: state.__name__)
def test_the_focus_is_seen_wherever_it_goes(visit: Visit, service: Service, state: State, scheme: Options) -> None:
    """WCAG 2.4.3, 2.4.7 and 2.4.11: it goes in reading order, and its ring stands out and is in view, all of it."""
    page = state(visit, service, scheme)
    page.evaluate("document.activeElement.blur(); document.body.tabIndex = -1; document.body.focus()")
    paper = colour(page.locator("body"), "backgroundColor")
    stops = page.evaluate("document.querySelectorAll('a, button, input:not([type=hidden])').length")
    for number in range(stops):
        page.keyboard.press("Tab")
        index, style, width, ring, in_view = page.evaluate(
            """() => {
                const stops = [...document.querySelectorAll("a, button, input:not([type=hidden])")];
                const stop = document.activeElement, look = getComputedStyle(stop), box = stop.getBoundingClientRect();
                const width = parseFloat(look.outlineWidth), reach = width + parseFloat(look.outlineOffset);
                return [stops.indexOf(stop), look.outlineStyle, width, look.outlineColor,
                    Math.min(box.top, box.left, innerHeight - box.bottom, innerWidth - box.right) >= reach];
            }"""
        )
        assert (index, style, in_view) == (number, "solid", True)
        assert width >= 2
        assert contrast(parse(ring), paper) >= 3


@pytest.mark.parametrize("state", [full, refused, unavailable, edited, overtaken], ids=lambda state: state.__name__)
def test_a_small_screen_needs_no_sideways_scrolling(visit: Visit, service: Service, state: State) -> None:
    """WCAG 1.4.10: 320 px, which 1280 px at 400 % are too, a phone's 390 px, and 640 px, which are 1280 px at 200 %."""
    page = state(visit, service, {})
    for width in (320, 390, 640):
        page.set_viewport_size({"width": width, "height": 640})
        assert_nothing_sticks_out(page)


def test_large_and_spaced_type_fits(visit: Visit, service: Service) -> None:
    """WCAG 1.4.4 and 1.4.12: type of twice the size, and the spacing that some readers need, lose nothing."""
    page = full(visit, service, {"viewport": {"width": 640, "height": 800}})
    page.evaluate(
        """for (const element of document.querySelectorAll("*"))
            Object.assign(element.style, {letterSpacing: "0.12em", wordSpacing: "0.16em", lineHeight: "1.5"});
        document.body.style.fontSize = "200%";
        document.documentElement.style.fontSize = "200%" """
    )
    assert_nothing_sticks_out(page)


def assert_nothing_sticks_out(page: Page) -> None:
    """What is read fits the screen, and what is pressed has the 44 px that a finger needs (WCAG 2.5.5)."""
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    outside = page.evaluate(
        """[...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth)
            .map(e => e.outerHTML)"""
    )
    assert outside == []
    sizes = page.evaluate(
        """[...document.querySelectorAll("button, input:not([type=hidden]), nav a, li a")]
            .map(e => e.getBoundingClientRect()).map(box => [box.width, box.height])"""
    )
    assert sizes
    assert min(min(size) for size in sizes) >= 44


@pytest.mark.parametrize("state", [added, refused, unavailable, overtaken], ids=lambda state: state.__name__)
def test_forced_colours_leave_every_control_its_edge(visit: Visit, service: Service, state: State) -> None:
    page = state(visit, service, STILL | {"forced_colors": "active"})
    paper = colour(page.locator("body"), "backgroundColor")
    edges = page.evaluate(
        """[...document.querySelectorAll("button, input:not([type=hidden])")]
            .map(e => getComputedStyle(e)).map(look => [look.borderTopStyle, look.borderTopColor])"""
    )
    assert edges
    for style, edge in edges:
        assert style == "solid"
        assert contrast(parse(edge, behind=paper), paper) >= 3


def test_nothing_moves_for_those_who_asked_for_that(visit: Visit) -> None:
    moving = "[...document.querySelectorAll('*')].filter(e => getComputedStyle(e).transitionDuration != '0s').length"
    assert visit(reduced_motion="no-preference").evaluate(moving) > 0
    assert visit(reduced_motion="reduce").evaluate(moving) == 0
