"""What the page promises its users: nothing typed is lost, nothing is duplicated, and no script is needed."""

import re

import pytest
from playwright.sync_api import Locator, Page, expect

from goals import embedded
from tests.e2e.conftest import Options, Visit, Watch
from tests.e2e.stage import Service, run_service


def field(page: Page) -> Locator:
    return page.get_by_role("textbox", name="New goal")


def add(page: Page, name: str) -> None:
    field(page).fill(name)
    page.get_by_role("button", name="Add goal").click()


def names(page: Page) -> Locator:
    return page.get_by_role("listitem").locator("bdi")


def edit(page: Page, name: str, new: str) -> None:
    page.get_by_role("link", name=f"Edit {name}").click()
    expect(page.get_by_role("textbox", name="Goal")).to_have_value(name)
    page.get_by_role("textbox", name="Goal").fill(new)
    page.get_by_role("button", name="Save").click()


def test_a_goal_is_added_seen_and_removed(visit: Visit, service: Service, scripting: Options) -> None:
    page = visit(**scripting)
    expect(page).to_have_title("Goals")
    expect(page.get_by_role("heading", name="no goals yet")).to_be_visible()
    expect(page.get_by_text("for example “Read a book a month”")).to_be_visible()

    add(page, "Learn to sail")
    expect(page.get_by_role("heading", name="1 goal")).to_be_visible()
    add(page, "  Plant a tree ")
    expect(names(page)).to_have_text(["Plant a tree", "Learn to sail"])
    expect(page.get_by_role("heading", name="2 goals")).to_be_visible()
    expect(field(page)).to_have_value("")
    expect(page).to_have_url(f"{service.url}/")

    page.get_by_role("button", name="Remove Learn to sail").click()
    expect(names(page)).to_have_text(["Plant a tree"])
    assert service.goals() == ["Plant a tree"]


def test_older_and_newer_lead_through_all_goals(visit: Visit, service: Service, scripting: Options) -> None:
    service.execute("INSERT INTO goals (goal_name) SELECT 'Goal ' || n FROM generate_series(1, 120) AS n")
    page = visit(**scripting)
    older = page.get_by_role("link", name="Older", exact=True)
    newer = page.get_by_role("link", name="Newer", exact=True)
    expect(page.get_by_role("heading", name="120 goals")).to_be_visible()
    expect(newer).to_have_count(0)

    seen = names(page).all_text_contents()
    for first in ("Goal 70", "Goal 20"):
        older.click()
        expect(names(page).first).to_have_text(first)
        expect(page).to_have_title(re.compile("^Older goals"))
        seen += names(page).all_text_contents()
    assert seen == [f"Goal {n}" for n in range(120, 0, -1)]
    expect(older).to_have_count(0)

    newer.click()
    expect(names(page).first).to_have_text("Goal 70")
    newer.click()
    expect(names(page).first).to_have_text("Goal 120")
    expect(newer).to_have_count(0)


def test_a_double_click_adds_one_goal(visit: Visit, service: Service, scripting: Options) -> None:
    page = visit(**scripting)
    field(page).fill("Learn to sail")
    page.get_by_role("button", name="Add goal").dblclick()
    expect(names(page)).to_have_text(["Learn to sail"])
    assert service.goals() == ["Learn to sail"]


def test_a_second_click_on_a_slow_day_adds_one_goal(visit: Visit, service: Service) -> None:
    page = visit()
    field(page).fill("Learn to sail")
    button = page.get_by_role("button", name="Add goal").bounding_box()
    assert button is not None
    with service.writes_held_up():
        for _ in range(2):
            with page.expect_request(re.compile("/add_goal$")):
                page.mouse.click(button["x"] + 9, button["y"] + 9)
    expect(names(page)).to_have_text(["Learn to sail"])
    assert service.goals() == ["Learn to sail"]


def test_back_edit_and_send_adds_a_second_goal(visit: Visit, service: Service, scripting: Options) -> None:
    page = visit(**scripting)
    add(page, "Learn to sail")
    expect(names(page)).to_have_text(["Learn to sail"])
    page.go_back()
    add(page, "Learn to sail alone")
    expect(names(page)).to_have_text(["Learn to sail alone", "Learn to sail"])
    assert service.goals() == ["Learn to sail alone", "Learn to sail"]


def test_a_reload_after_adding_adds_nothing(visit: Visit, service: Service) -> None:
    page = visit()
    add(page, "Learn to sail")
    expect(names(page)).to_have_text(["Learn to sail"])
    page.reload()
    expect(names(page)).to_have_text(["Learn to sail"])
    assert service.goals() == ["Learn to sail"]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("   ", "Enter a goal."),
        ("a" * 256, "at most 255 characters; this one has 256"),
        ("one\u202etwo", "without control characters"),
    ],
    ids=["blank", "too long", "forbidden character"],
)
def test_a_bad_name_comes_back_with_the_reason(
    visit: Visit,
    watch: Watch,
    service: Service,
    typed: str,
    message: str,
    scripting: Options,
) -> None:
    watch.expected = {422}
    page = visit(**scripting)
    with page.expect_response(re.compile("/add_goal$")) as response:
        add(page, typed)
    assert response.value.status == 422
    expect(page).to_have_title("Error: Goals")
    expect(field(page)).to_have_value(typed)
    expect(field(page)).to_be_focused()
    expect(field(page)).to_have_attribute("aria-invalid", "true")
    expect(field(page)).to_have_accessible_description(re.compile(re.escape(message)))
    expect(page.get_by_role("status")).to_be_empty()
    gap = page.evaluate(
        "document.getElementById('message').getBoundingClientRect().top"
        " - document.getElementById('goal_name').getBoundingClientRect().bottom"
    )
    assert 0 <= gap < 16, "the message stands beside its field"

    add(page, "Learn to sail")
    expect(names(page)).to_have_text(["Learn to sail"])
    expect(page.locator("#message")).to_be_empty()
    assert service.goals() == ["Learn to sail"]


def test_the_outcome_is_told_once(visit: Visit, watch: Watch) -> None:
    page = visit()
    status = page.get_by_role("status")
    expect(status).to_be_empty()
    add(page, " Learn to sail ")
    expect(status).to_have_text("Added “Learn to sail”")
    expect(field(page)).to_be_focused()
    page.reload()
    expect(names(page)).to_have_text(["Learn to sail"])
    expect(status).to_be_empty()
    page.get_by_role("button", name="Remove Learn to sail").click()
    expect(status).to_have_text("Removed “Learn to sail”")
    expect(field(page)).to_be_focused()

    # A refusal is announced by the field, not as something done, neither then nor later.
    watch.expected = {422}
    page.add_init_script("window.setTimeout = run => run()")  # so that what is not announced on load never is
    add(page, " ")
    expect(page.locator("#message")).not_to_be_empty()
    page.wait_for_load_state()
    expect(status).to_be_empty()
    page.goto("/")
    expect(status).to_be_empty()


def test_after_a_removal_the_focus_goes_to_the_row_that_moved_up(visit: Visit, service: Service) -> None:
    service.execute("INSERT INTO goals (goal_name) VALUES ('Sail'), ('Swim'), ('Sing')")
    page = visit()
    page.get_by_role("button", name="Remove Swim").press("Enter")
    expect(page.get_by_role("listitem").filter(has_text="Sail")).to_be_focused()
    assert ring(page) != "none"
    page.keyboard.press("Enter")  # a key held down on a row removes nothing
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Edit Sail")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Remove Sail")).to_be_focused()
    page.keyboard.press("Space")
    expect(page.get_by_role("listitem").filter(has_text="Sing")).to_be_focused()
    assert service.goals() == ["Sing"]


def ring(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.activeElement).outlineStyle"))


def test_after_a_removal_by_mouse_no_ring_is_drawn(visit: Visit, service: Service) -> None:
    service.execute("INSERT INTO goals (goal_name) VALUES ('Sail'), ('Swim'), ('Sing')")
    page = visit()
    page.get_by_role("button", name="Remove Swim").click()
    expect(page.get_by_role("listitem").filter(has_text="Sail")).to_be_focused()
    assert ring(page) == "none"
    page.keyboard.press("Tab")  # from there on by keys, with a ring again
    expect(page.get_by_role("link", name="Edit Sail")).to_be_focused()
    assert ring(page) == "solid"


def test_an_announcement_quotes_the_goal_s_name_and_nothing_else_of_its_row(visit: Visit, service: Service) -> None:
    service.execute("INSERT INTO goals (goal_name) VALUES ('Sail'), ('Swim')")
    page = visit()
    # As a field more would be shown, for the eye and in the button's name.
    page.evaluate(
        """for (const element of document.querySelectorAll("li a, li button span")) element.append(" by 31 January")"""
    )
    page.get_by_role("button", name="Remove Swim by 31 January").click()
    expect(page.get_by_role("status")).to_have_text("Removed “Swim”")


def test_a_goal_is_edited(visit: Visit, service: Service, scripting: Options) -> None:
    service.execute("INSERT INTO goals (goal_name) VALUES ('Sail'), ('Swim'), ('Sing')")
    page = visit(**scripting)
    edit(page, "Swim", "Swim a mile")
    expect(page).to_have_url(f"{service.url}/")
    expect(names(page)).to_have_text(["Sing", "Swim a mile", "Sail"])
    if scripting["java_script_enabled"]:
        expect(page.get_by_role("status")).to_have_text("Changed “Swim a mile”")
        expect(page.get_by_role("listitem").filter(has_text="Swim a mile")).to_be_focused()
        assert ring(page) == "none"
    page.get_by_role("link", name="Edit Sail").press("Enter")
    expect(page).to_have_title(re.compile("^Edit goal"))
    expect(page.get_by_role("textbox", name="Goal")).to_be_focused()
    page.keyboard.press("End")
    page.keyboard.type(" away")
    page.keyboard.press("Enter")
    expect(names(page)).to_have_text(["Sing", "Swim a mile", "Sail away"])
    if scripting["java_script_enabled"]:
        expect(page.get_by_role("listitem").filter(has_text="Sail away")).to_be_focused()
        assert ring(page) == "solid"
    page.get_by_role("link", name="Edit Sing").click()
    page.get_by_role("textbox", name="Goal").fill("Not this")
    page.get_by_role("link", name="Back to the goals").click()
    assert service.goals() == ["Sing", "Swim a mile", "Sail away"]


def test_an_edited_goal_of_an_older_page_is_announced_from_the_field(visit: Visit, service: Service) -> None:
    service.execute("INSERT INTO goals (goal_name) SELECT 'Goal ' || n FROM generate_series(1, 60) AS n")
    page = visit("/?before=11")
    edit(page, "Goal 5", "Goal five")
    expect(page.get_by_role("status")).to_have_text("Changed “Goal five”")
    expect(field(page)).to_be_focused()


def test_a_double_click_on_save_is_one_change(visit: Visit, service: Service, scripting: Options) -> None:
    service.execute("INSERT INTO goals (goal_name) VALUES ('Sail')")
    page = visit("/goals/1", **scripting)
    page.get_by_role("textbox").fill("Swim")
    page.get_by_role("button", name="Save").dblclick()
    expect(names(page)).to_have_text(["Swim"])


def test_two_who_edit_one_goal_see_each_other_s_text(
    visit: Visit, watch: Watch, service: Service, scripting: Options
) -> None:
    watch.expected = {409}
    service.execute("INSERT INTO goals (goal_name) VALUES ('Sail')")
    page, other = visit("/goals/1", **scripting), visit("/goals/1", **scripting)
    other.get_by_role("textbox").fill("Their <text>")
    other.get_by_role("button", name="Save").click()
    expect(names(other)).to_have_text(["Their <text>"])
    page.get_by_role("textbox").fill("My text")
    page.get_by_role("button", name="Save").click()
    expect(page).to_have_title(re.compile("^Error: Edit goal"))
    expect(page.get_by_role("textbox")).to_have_value("My text")
    expect(page.get_by_role("textbox")).to_be_focused()
    expect(page.get_by_role("textbox")).to_have_accessible_description(
        re.compile("changed this goal to “Their <text>” in the meantime")
    )
    assert service.goals() == ["Their <text>"]
    page.get_by_role("button", name="Save anyway").click()
    expect(names(page)).to_have_text(["My text"])


def test_the_text_for_a_removed_goal_is_kept(visit: Visit, watch: Watch, service: Service, scripting: Options) -> None:
    watch.expected = {404}
    service.execute("INSERT INTO goals (goal_name) VALUES ('Sail')")
    page = visit("/goals/1", **scripting)
    service.execute("DELETE FROM goals")
    page.get_by_role("textbox").fill("Swim")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Someone has removed this goal.")).to_be_visible()
    expect(field(page)).to_have_value("Swim")
    expect(page.get_by_role("status")).to_be_empty()
    page.get_by_role("button", name="Add goal").click()
    expect(names(page)).to_have_text(["Swim"])


def test_after_a_removal_on_an_older_page_the_focus_goes_to_the_field(visit: Visit, service: Service) -> None:
    service.execute("INSERT INTO goals (goal_name) SELECT 'Goal ' || n FROM generate_series(1, 60) AS n")
    page = visit("/?before=11")
    page.get_by_role("button", name="Remove Goal 5", exact=True).press("Enter")
    expect(page.get_by_role("status")).to_have_text("Removed “Goal 5”")
    expect(page).to_have_url(f"{service.url}/")
    expect(field(page)).to_be_focused()


def test_removing_what_somebody_else_has_removed_is_no_error(visit: Visit, service: Service) -> None:
    service.execute("INSERT INTO goals (goal_name) VALUES ('Sail'), ('Swim')")
    page = visit()
    service.execute("DELETE FROM goals WHERE goal_name = 'Swim'")
    page.get_by_role("button", name="Remove Swim").click()
    expect(names(page)).to_have_text(["Sail"])


def test_everything_works_by_keyboard(visit: Visit, service: Service) -> None:
    page = visit()
    keyboard = page.keyboard
    keyboard.press("Tab")
    expect(page.get_by_role("link", name="Goals", exact=True)).to_be_focused()
    keyboard.press("Tab")
    expect(field(page)).to_be_focused()
    keyboard.type("Learn to sail")
    keyboard.press("Enter")
    expect(names(page)).to_have_text(["Learn to sail"])
    expect(field(page)).to_be_focused()
    keyboard.type("Plant a tree")
    keyboard.press("Tab")
    expect(page.get_by_role("button", name="Add goal")).to_be_focused()
    keyboard.press("Space")
    expect(names(page)).to_have_text(["Plant a tree", "Learn to sail"])
    expect(field(page)).to_be_focused()
    for _ in range(5):
        keyboard.press("Tab")
    expect(page.get_by_role("button", name="Remove Learn to sail")).to_be_focused()
    keyboard.press("Enter")
    expect(names(page)).to_have_text(["Plant a tree"])
    assert service.goals() == ["Plant a tree"]


def test_a_name_is_text_whatever_is_in_it(visit: Visit) -> None:
    page = visit()
    name = """<img src=x onerror=alert(1)><script>alert(2)</script> & "quotes' {{ 7 * 7 }}"""
    add(page, name)
    expect(names(page)).to_have_text([name])
    expect(page.get_by_role("status")).to_have_text(f"Added “{name}”")
    page.get_by_role("button", name=f"Remove {name}").click()
    expect(page.get_by_role("status")).to_have_text(f"Removed “{name}”")


def test_an_error_page_leads_back(visit: Visit, watch: Watch, service: Service) -> None:
    watch.expected = {404}
    page = visit("/nothing")
    expect(page).to_have_title(re.compile("^We could not find that"))
    expect(page.get_by_role("heading", level=1)).to_have_text("We could not find that")
    page.get_by_role("link", name="Back to the goals").click()
    expect(page).to_have_url(f"{service.url}/")
    expect(field(page)).to_be_visible()


def test_what_was_typed_outlives_an_outage(visit: Visit, watch: Watch) -> None:
    watch.expected = {503}
    with run_service() as service:
        watch.urls.append(service.url)
        page = visit(service.url)
        service.database.close()
        add(page, "Learn to <sail>")
        expect(page.get_by_role("heading", level=1)).to_have_text("The goals are not available right now")
        expect(page.get_by_text("Your goal is kept here: Learn to <sail>")).to_be_visible()
        with embedded.run(service.folder):
            page.get_by_role("button", name="Try again").click()
            expect(names(page)).to_have_text(["Learn to <sail>"])
            expect(page.get_by_role("status")).to_have_text("Added “Learn to <sail>”")
            assert service.goals() == ["Learn to <sail>"]


def test_what_was_edited_outlives_an_outage(visit: Visit, watch: Watch, service: Service) -> None:
    watch.expected = {503}
    service.execute("INSERT INTO goals (goal_name) VALUES ('Sail')")
    page = visit("/goals/1")
    page.get_by_role("textbox").fill("Swim")
    with service.writes_held_up():
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_text("Your goal is kept here: Swim")).to_be_visible()
    page.get_by_role("button", name="Try again").click()
    expect(names(page)).to_have_text(["Swim"])
    expect(page.get_by_role("status")).to_have_text("Changed “Swim”")


def test_a_form_of_another_site_adds_nothing(visit: Visit, watch: Watch, service: Service) -> None:
    watch.expected = {403}
    page = visit("about:blank")
    page.set_content(
        f'<form method="post" action="{service.url}/add_goal"><input name="goal_name" value="Spam"><button>'
    )
    page.get_by_role("button").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("We did not accept that")
    assert service.goals() == []


def test_the_watch_sees_a_script_that_the_policy_refuses(visit: Visit, watch: Watch) -> None:
    page = visit()
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'var ran = 1'}))")
    assert page.evaluate("typeof ran") == "undefined"
    complaint = watch.complaints.pop()
    assert "Content Security Policy" in complaint
