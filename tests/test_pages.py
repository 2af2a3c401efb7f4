"""The pages and their three forms, as a browser without JavaScript sees them."""

import asyncio
import html
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import text

from goals.database import Database
from goals.responses import STATIC, static_url
from goals.schemas import PAGE_SIZE, GoalBody
from goals.settings import Settings
from tests.conftest import WIDE, alter, fill, serving, speaking_to

KEY = "01890a5d-ac96-774b-bcce-b302099a8057"


def key_in(page: httpx2.Response) -> str:
    (key,) = re.findall(r'name="idempotency_key" value="([^"]+)"', page.text)
    return str(key)


def names_in(page: httpx2.Response) -> list[str]:
    return [html.unescape(name) for name in re.findall(r"<bdi>(.*?)</bdi>", page.text)]


def ids_in(page: httpx2.Response) -> list[int]:
    return [int(number) for number in re.findall(r'name="goal_id" value="(\d+)"', page.text)]


def version_in(page: httpx2.Response) -> str:
    (version,) = re.findall(r'name="row_version" value="([^"]+)"', page.text)
    return str(version)


def typed_in(page: httpx2.Response) -> str:
    (typed,) = re.findall(r'name="goal_name" value="([^"]*)"', page.text)
    return html.unescape(str(typed))


def link_in(page: httpx2.Response, relation: str) -> str | None:
    found = re.search(rf'<a href="([^"]+)" rel="{relation}">', page.text)
    return found and found[1]


def total_in(page: httpx2.Response) -> str:
    (total,) = re.findall(r'<h2 id="total">(.*?)</h2>', page.text)
    return str(total)


async def test_an_empty_table_invites_to_write_the_first_goal(client: httpx2.AsyncClient) -> None:
    page = await client.get("/")
    assert page.status_code == 200
    assert total_in(page) == "no goals yet"
    assert "Add your first goal above, for example “Read a book a month”." in page.text
    assert (link_in(page, "prev"), link_in(page, "next")) == (None, None)


async def test_the_page_may_not_be_stored(client: httpx2.AsyncClient) -> None:
    page = await client.get("/")
    assert page.headers["cache-control"] == "no-store"
    assert "etag" not in page.headers


async def test_goals_appear_newest_first_under_their_day_and_go_again(client: httpx2.AsyncClient) -> None:
    for name in ("first", "second & last"):
        response = await client.post(
            "/add_goal", data={"goal_name": name, "idempotency_key": key_in(await client.get("/"))}
        )
        assert (response.status_code, response.headers["location"]) == (303, "/")
    page = await client.get("/")
    assert (names_in(page), total_in(page)) == (["second & last", "first"], "2 goals")
    assert f'<time datetime="{datetime.now(UTC).date()}">' in page.text
    response = await client.post("/remove_goal", data={"goal_id": ids_in(page)[0]})
    assert (response.status_code, response.headers["location"]) == (303, "/")
    page = await client.get("/")
    assert (names_in(page), total_in(page)) == (["first"], "1 goal")


@pytest.mark.usefixtures("undated")
async def test_a_goal_older_than_the_record_of_days_is_undated(client: httpx2.AsyncClient) -> None:
    assert "<h3>Undated</h3>" in (await client.get("/")).text


async def test_the_form_works_without_a_key(client: httpx2.AsyncClient) -> None:
    for _ in range(2):
        assert (await client.post("/add_goal", data={"goal_name": "twice"})).status_code == 303
    assert names_in(await client.get("/")) == ["twice", "twice"]


async def test_sixty_four_pages_at_once_carry_sixty_four_keys(client: httpx2.AsyncClient) -> None:
    pages = await asyncio.gather(*(client.get("/") for _ in range(64)))
    assert {page.status_code for page in pages} == {200}
    assert len({key_in(page) for page in pages}) == 64


async def test_a_double_click_adds_one_goal(client: httpx2.AsyncClient) -> None:
    data = {"goal_name": "once", "idempotency_key": key_in(await client.get("/"))}
    answers = await asyncio.gather(*(client.post("/add_goal", data=data) for _ in range(64)))
    # On a busy machine some wait too long for their turn and get a 503: nothing was done for them.
    assert {answer.status_code for answer in answers} - {503} == {303}
    assert names_in(await client.get("/")) == ["once"]


async def test_back_edit_and_send_keeps_the_text_and_adds_the_second_goal(client: httpx2.AsyncClient) -> None:
    data = {"goal_name": "first", "idempotency_key": KEY}
    assert (await client.post("/add_goal", data=data)).status_code == 303
    refused = await client.post("/add_goal", data={**data, "goal_name": 'second "goal"'})
    assert refused.status_code == 422
    assert "has already added another goal" in refused.text
    assert 'value="second &#34;goal&#34;"' in refused.text
    assert key_in(refused) != KEY
    again = {"goal_name": 'second "goal"', "idempotency_key": key_in(refused)}
    assert (await client.post("/add_goal", data=again)).status_code == 303
    assert names_in(await client.get("/")) == ['second "goal"', "first"]


async def test_a_removed_goal_is_not_added_again_by_its_form(client: httpx2.AsyncClient) -> None:
    data = {"goal_name": "again", "idempotency_key": KEY}
    await client.post("/add_goal", data=data)
    await client.post("/remove_goal", data={"goal_id": ids_in(await client.get("/"))[0]})
    page = await client.post("/add_goal", data=data)
    assert page.status_code == 410
    assert "This goal was added, but has been removed since." in page.text
    assert 'value="again"' not in page.text
    assert key_in(page) != KEY
    assert ids_in(await client.get("/")) == []


async def test_what_is_wrong_beside_the_name_is_said_in_the_same_place(client: httpx2.AsyncClient) -> None:
    page = await client.post("/add_goal", data={"goal_name": "kept", "idempotency_key": "no"})
    assert page.status_code == 422
    assert 'value="kept"' in page.text
    assert "idempotency_key: An idempotency key is a UUID" in page.text


async def test_a_repeated_removal_is_no_error(client: httpx2.AsyncClient) -> None:
    await client.post("/add_goal", data={"goal_name": "goes"})
    (goal_id,) = ids_in(await client.get("/"))
    answers = await asyncio.gather(*(client.post("/remove_goal", data={"goal_id": goal_id}) for _ in range(8)))
    assert {answer.status_code for answer in answers} == {303}


async def open_goal(client: httpx2.AsyncClient, name: str) -> tuple[str, httpx2.Response]:
    """Add a goal and follow its link; its address and its page."""
    await client.post("/add_goal", data={"goal_name": name})
    (address, *_) = re.findall(r'<a href="(/goals/\d+)">Edit <bdi>', (await client.get("/")).text)
    return address, await client.get(address)


async def test_a_goal_is_changed_on_a_page_of_its_own(client: httpx2.AsyncClient) -> None:
    address, page = await open_goal(client, 'first & "last"')
    assert (page.status_code, page.headers["cache-control"]) == (200, "no-store")
    assert typed_in(page) == 'first & "last"'
    response = await client.post(address, data={"goal_name": " second ", "row_version": version_in(page)})
    assert (response.status_code, response.headers["location"]) == (303, "/")
    assert names_in(await client.get("/")) == ["second"]


async def test_what_somebody_else_has_changed_meanwhile_is_shown_and_not_overwritten(
    client: httpx2.AsyncClient,
) -> None:
    address, page = await open_goal(client, "first")
    await client.patch(f"/api/v1{address}", json={"goal_name": "<theirs>"})
    conflict = await client.post(address, data={"goal_name": "mine", "row_version": version_in(page)})
    assert (conflict.status_code, typed_in(conflict)) == (409, "mine")
    assert names_in(conflict) == ["<theirs>"]
    assert "Save anyway" in conflict.text
    assert names_in(await client.get("/")) == ["<theirs>"]
    again = await client.post(address, data={"goal_name": "mine", "row_version": version_in(conflict)})
    assert again.status_code == 303
    assert names_in(await client.get("/")) == ["mine"]


async def test_a_repeated_change_is_no_error(client: httpx2.AsyncClient) -> None:
    address, page = await open_goal(client, "first")
    data = {"goal_name": "second", "row_version": version_in(page)}
    answers = await asyncio.gather(*(client.post(address, data=data) for _ in range(8)))
    assert {answer.status_code for answer in answers} == {303}
    assert names_in(await client.get("/")) == ["second"]


async def test_a_bad_change_comes_back_with_the_reason_and_the_version(client: httpx2.AsyncClient) -> None:
    address, page = await open_goal(client, "first")
    version = version_in(page)
    for data, typed, message in (
        ({"goal_name": " ", "row_version": version}, " ", "Enter a goal."),
        ({"goal_name": "a" * 256, "row_version": version}, "a" * 256, "this one has 256"),
        ({"goal_name": "kept", "row_version": "one"}, "kept", "row_version: A version is a whole number"),
        ({"goal_name": "kept"}, "kept", "row_version: This field is required."),
        ({"row_version": version}, "", "This field is required."),
    ):
        refused = await client.post(address, data=data)
        assert (refused.status_code, typed_in(refused)) == (422, typed)
        assert message in refused.text
        assert f'name="row_version" value="{data.get("row_version", "")}"' in refused.text
    assert (await client.post(address, data={"goal_name": "a", "row_version": "9" * 39})).status_code == 409
    assert names_in(await client.get("/")) == ["first"]


async def test_the_text_for_a_goal_that_is_gone_is_kept_in_the_form_for_a_new_one(client: httpx2.AsyncClient) -> None:
    address, page = await open_goal(client, "first")
    await client.delete(f"/api/v1{address}")
    gone = await client.post(address, data={"goal_name": "second", "row_version": version_in(page)})
    assert (gone.status_code, typed_in(gone)) == (404, "second")
    assert "Someone has removed this goal." in gone.text
    await client.post("/add_goal", data={"goal_name": typed_in(gone), "idempotency_key": key_in(gone)})
    assert names_in(await client.get("/")) == ["second"]
    assert (await client.get(address)).status_code == 404


async def walk(client: httpx2.AsyncClient, start: str, relation: str) -> list[list[int]]:
    pages = []
    target: str | None = start
    while target is not None:
        page = await client.get(target)
        pages.append(ids_in(page))
        target = link_in(page, relation)
    return pages


@pytest.mark.parametrize("number", [1, 49, 50, 51, 99, 100, 101, 176])
async def test_older_shows_each_goal_once_whatever_ties_and_gaps_there_are(
    client: httpx2.AsyncClient, database: Database, number: int
) -> None:
    ids = await fill(database, number, gaps=range(3, number, 7))
    pages = await walk(client, "/", "next")
    assert [goal_id for page in pages for goal_id in page] == ids
    assert all(len(page) == PAGE_SIZE for page in pages[:-1])
    assert pages[-1]


async def test_newer_leads_back_the_same_way(client: httpx2.AsyncClient, database: Database) -> None:
    ids = await fill(database, 200, gaps=range(5, 200, 11))
    older = await walk(client, "/", "next")
    last = f"/?before={older[-2][-1]}"
    newer = await walk(client, last, "prev")
    seen = [goal_id for page in reversed(newer) for goal_id in page]
    assert sorted(set(seen), reverse=True) == ids
    # Only the first page, which is always whole, may show again what the second has shown.
    assert [page for page in newer[:-1] if len(page) != PAGE_SIZE] == [older[-1]]
    assert newer[-1] == older[0]


async def test_goals_added_and_removed_meanwhile_neither_repeat_nor_hide_others(
    client: httpx2.AsyncClient, database: Database
) -> None:
    ids = await fill(database, 120)
    first = await client.get("/")
    await fill(database, 30)
    await client.post("/remove_goal", data={"goal_id": ids_in(first)[-1]})
    older = link_in(first, "next")
    assert older is not None
    assert ids_in(first) + [goal_id for page in await walk(client, older, "next") for goal_id in page] == ids


async def test_beyond_the_oldest_goal_a_way_leads_back(client: httpx2.AsyncClient, database: Database) -> None:
    await fill(database, 3)
    page = await client.get("/?before=1")
    assert "There are no older goals." in page.text
    assert (ids_in(page), link_in(page, "prev"), link_in(page, "next")) == ([], "/", None)


async def test_where_nothing_newer_is_left_the_first_page_is_shown_whole(
    client: httpx2.AsyncClient, database: Database
) -> None:
    ids = await fill(database, 120)
    for target in ("/?after=100", "/?after=120", "/?after=9999"):
        page = await client.get(target)
        assert ids_in(page) == ids[:PAGE_SIZE]
        assert (link_in(page, "prev"), link_in(page, "next")) == (None, "/?before=71")


async def test_the_parameters_of_others_are_passed_over(client: httpx2.AsyncClient, database: Database) -> None:
    await fill(database, 3)
    assert ids_in(await client.get("/?utm_source=letter&before=3&&fbclid=")) == [2, 1]


async def test_goals_are_counted_up_to_ten_thousand_and_estimated_beyond(
    client: httpx2.AsyncClient, database: Database
) -> None:
    # Nobody else may count meanwhile.
    await alter(database, "ALTER TABLE goals SET (autovacuum_enabled = off)")
    await fill(database, 10_000)
    assert total_in(await client.get("/")) == "10,000 goals"
    await fill(database, 2_345)
    assert total_in(await client.get("/")) == "more than 10,000 goals"
    await alter(database, "ANALYZE goals")
    assert total_in(await client.get("/")) == "about 12,300 goals"
    assert total_in(await client.get("/?after=7")) == "about 12,300 goals"
    await alter(database, "ALTER TABLE goals RESET (autovacuum_enabled)")


async def test_a_name_longer_than_today_is_shown_as_it_is(client: httpx2.AsyncClient, database: Database) -> None:
    await database.fetch(text("INSERT INTO goals (goal_name) VALUES (repeat('long ', 100)) RETURNING id"))
    assert names_in(await client.get("/")) == ["long " * 100]


@pytest.mark.parametrize("name", STATIC)
async def test_a_static_file_may_be_kept_for_ever_under_the_address_the_page_names(
    client: httpx2.AsyncClient, name: str
) -> None:
    response = await client.get(static_url(name))
    assert (response.status_code, response.content) == (200, STATIC[name])
    assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert response.headers["content-type"].startswith(("text/", "image/svg+xml"))


@pytest.mark.parametrize("query", ["", "?v=another", "?v="])
async def test_a_static_file_asked_for_by_another_version_is_not_kept(client: httpx2.AsyncClient, query: str) -> None:
    response = await client.get(f"/static/goals.css{query}")
    assert (response.status_code, response.headers["cache-control"]) == (200, "no-cache")


async def test_a_head_is_answered_like_its_get_without_the_body(client: httpx2.AsyncClient) -> None:
    for target in ("/", "/health", static_url("goals.css"), "/nowhere", "/?before=x"):
        get, head = await client.get(target), await client.head(target)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert int(head.headers["content-length"]) == len(get.content)


async def test_what_was_typed_is_kept_with_a_key_while_the_database_is_away(settings: Settings, tmp_path: Path) -> None:
    forms = [
        {"goal_name": "kept"},
        {"goal_name": "kept", "idempotency_key": KEY},
        {"goal_name": "long" * 100},
        {"goal_name": ""},
    ]
    async with (
        serving(settings.model_copy(update={"db_host": str(tmp_path)}), replace(WIDE, retry_budget=0.2)) as service,
        speaking_to(service.port) as client,
    ):
        answers = await asyncio.gather(*(client.post("/add_goal", data=form) for form in forms))
        change = await client.post("/goals/7", data={"goal_name": "<kept>", "row_version": "3"})
        emptied = await client.post("/goals/7", data={"goal_name": "", "row_version": "3"})
    assert {answer.status_code for answer in answers} == {503}
    *kept, empty = answers
    for form, answer in zip(forms, kept, strict=False):
        assert f'name="goal_name" value="{form["goal_name"]}"' in answer.text
        assert UUID(key_in(answer)) == UUID(form.get("idempotency_key", key_in(answer)))
    assert "<button>Try again" not in empty.text
    assert (change.status_code, typed_in(change), version_in(change)) == (503, "<kept>", "3")
    assert emptied.status_code == 422  # nothing there to ask the database about


async def test_a_large_page_is_whole_though_readers_share_a_piece_of_it(
    client: httpx2.AsyncClient, database: Database
) -> None:
    await alter(database, "INSERT INTO goals (goal_name) SELECT repeat('x', 255) FROM generate_series(1, 60)")
    pages = await asyncio.gather(*(client.get("/") for _ in range(5)))
    for page in pages:
        assert names_in(page) == ["x" * 255] * PAGE_SIZE
        assert int(page.headers["content-length"]) == len(page.content)
        assert page.headers["cache-control"] == "no-store"
    assert len({key_in(page) for page in pages}) == 5
    head = await client.head("/")
    assert (head.content, head.headers["content-length"]) == (b"", pages[0].headers["content-length"])


async def test_the_forms_have_every_field(client: httpx2.AsyncClient) -> None:
    await client.post("/add_goal", data={"goal_name": "Read"})
    for address, hidden in (("/", "idempotency_key"), ("/goals/1", "row_version")):
        form = (await client.get(address)).text.partition('<form class="add"')[2].partition("</form>")[0]
        assert {*GoalBody.model_fields, hidden} == set(re.findall(r'name="(\w+)"', form))
