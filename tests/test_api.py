"""The JSON API: representations, preconditions, idempotency, pages."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx2
import pytest

from goals.database import Database
from goals.schemas import PAGE_SIZE
from tests.conftest import fill

GOALS = "/api/v1/goals"
UUID = "0190b2a4-7d3e-7c11-9f5a-3f2c8f0e6d21"


async def add(client: httpx2.AsyncClient, name: str, **headers: str) -> httpx2.Response:
    fields = {field.replace("_", "-"): value for field, value in headers.items()}
    return await client.post(GOALS, json={"goal_name": name}, headers=fields)


async def test_a_goal_is_made_read_renamed_and_removed(client: httpx2.AsyncClient) -> None:
    made = await add(client, "  Read a book  ")
    assert (made.status_code, made.headers["location"]) == (201, f"{GOALS}/1")
    goal = made.json()
    assert (goal["id"], goal["goal_name"]) == (1, "Read a book")
    assert datetime.now(UTC) - datetime.fromisoformat(goal["created_at"]) < timedelta(minutes=1)
    read = await client.get(made.headers["location"])
    assert (read.status_code, read.json(), read.headers["etag"]) == (200, goal, made.headers["etag"])
    renamed = await client.patch(f"{GOALS}/1", json={"goal_name": "Read two"})
    assert (renamed.status_code, renamed.json()) == (200, goal | {"goal_name": "Read two"})
    assert renamed.headers["etag"] != read.headers["etag"]
    assert (await client.get(GOALS)).json() == {"goals": [renamed.json()]}
    removed = await client.delete(f"{GOALS}/1")
    assert (removed.status_code, removed.content) == (204, b"")
    assert [(await client.request(method, f"{GOALS}/1")).status_code for method in ("GET", "DELETE")] == [404, 404]


@pytest.mark.parametrize("target", [GOALS, f"{GOALS}/1", "/openapi.json", f"{GOALS}?limit=1"])
async def test_what_the_client_has_already_is_not_sent_again(client: httpx2.AsyncClient, target: str) -> None:
    await add(client, "one")
    await add(client, "two")
    fresh = await client.get(target)
    etag = fresh.headers["etag"]
    assert fresh.headers["cache-control"] == "no-cache"
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*", f'"a,b" ,W/{etag}'):
        response = await client.get(target, headers={"if-none-match": known})
        assert (response.status_code, response.content) == (304, b"")
        assert {name: response.headers.get(name) for name in ("etag", "cache-control", "link")} == {
            name: fresh.headers.get(name) for name in ("etag", "cache-control", "link")
        }
    spread = await client.get(target, headers=[("if-none-match", '"other"'), ("if-none-match", etag)])
    assert spread.status_code == 304
    for unknown in ('"other"', etag.strip('"'), "", f"{etag}x"):
        response = await client.get(target, headers={"if-none-match": unknown})
        assert (response.status_code, response.content) == (200, fresh.content)


async def test_a_representation_has_one_etag_and_another_another(client: httpx2.AsyncClient) -> None:
    await add(client, "one")
    before = (await client.get(GOALS)).headers["etag"]
    await add(client, "two")
    after = (await client.get(GOALS)).headers["etag"]
    await client.delete(f"{GOALS}/2")
    assert before != after
    assert (await client.get(GOALS)).headers["etag"] == before


async def test_a_rename_with_if_match_needs_the_goal_as_it_was_read(client: httpx2.AsyncClient) -> None:
    etag = (await add(client, "one")).headers["etag"]

    async def rename(name: str, expected: str) -> int:
        response = await client.patch(f"{GOALS}/1", json={"goal_name": name}, headers={"if-match": expected})
        return response.status_code

    for expected in ('"other"', f"W/{etag}", "", etag.strip('"')):
        assert await rename("two", expected) == 412
    assert (await client.get(f"{GOALS}/1")).json()["goal_name"] == "one"
    assert await rename("two", f'"other", {etag}') == 200
    assert await rename("three", etag) == 412
    assert await rename("three", "*") == 200
    gone = await client.patch(f"{GOALS}/9", json={"goal_name": "x"}, headers={"if-match": "*"})
    assert gone.status_code == 404
    gone = await client.patch(f"{GOALS}/9", json={"goal_name": "x"}, headers={"if-match": etag})
    assert gone.status_code == 404


async def test_of_many_renames_of_the_same_state_one_wins(client: httpx2.AsyncClient) -> None:
    etag = (await add(client, "one")).headers["etag"]
    answers = await asyncio.gather(
        *(
            client.patch(f"{GOALS}/1", json={"goal_name": f"name {number}"}, headers={"if-match": etag})
            for number in range(16)
        )
    )
    (winner,) = (answer for answer in answers if answer.status_code == 200)
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 15
    assert (await client.get(f"{GOALS}/1")).json() == winner.json()


async def test_of_many_renames_without_if_match_the_last_stays(client: httpx2.AsyncClient) -> None:
    await add(client, "one")
    answers = await asyncio.gather(
        *(client.patch(f"{GOALS}/1", json={"goal_name": f"name {number}"}) for number in range(16))
    )
    assert {answer.status_code for answer in answers} == {200}
    assert (await client.get(f"{GOALS}/1")).json() in [answer.json() for answer in answers]


async def test_sixty_four_posts_with_one_key_make_one_goal(client: httpx2.AsyncClient) -> None:
    key = str(uuid4())
    answers = await asyncio.gather(*(add(client, "once", idempotency_key=key) for _ in range(64)))
    # On a busy machine some wait too long for their turn and get a 503: nothing was done for them.
    made = {(answer.status_code, answer.content) for answer in answers if answer.status_code != 503}
    assert [status for status, _ in made] == [201]
    assert len((await client.get(GOALS)).json()["goals"]) == 1


async def test_a_key_belongs_to_the_first_of_two_names(client: httpx2.AsyncClient) -> None:
    key = str(uuid4())
    answers = await asyncio.gather(*(add(client, f"name {number % 2}", idempotency_key=key) for number in range(16)))
    assert sorted(answer.status_code for answer in answers) == [201] * 8 + [422] * 8
    assert len((await client.get(GOALS)).json()["goals"]) == 1


async def test_a_late_repeat_gets_its_goal_as_it_is_now(client: httpx2.AsyncClient) -> None:
    key = str(uuid4())
    await add(client, "first", idempotency_key=key)
    for name in ("second", "third"):
        await client.patch(f"{GOALS}/1", json={"goal_name": name})
    repeat = await add(client, "first", idempotency_key=f'"{key.upper()}"')
    assert (repeat.status_code, repeat.json()["goal_name"]) == (201, "third")
    # The new name never made a goal with this key.
    assert (await add(client, "third", idempotency_key=key)).status_code == 422


async def test_a_repeat_after_the_removal_says_that_it_is_gone(client: httpx2.AsyncClient) -> None:
    key = str(uuid4())
    first = await add(client, "again", idempotency_key=key)
    await client.delete(first.headers["location"])
    repeat = await add(client, "again", idempotency_key=key)
    assert (repeat.status_code, repeat.json()["title"]) == (410, "Gone")
    assert (await add(client, "other", idempotency_key=key)).status_code == 422
    assert (await client.get(GOALS)).json()["goals"] == []


async def test_a_repeat_takes_no_id(client: httpx2.AsyncClient) -> None:
    key = str(uuid4())
    for _ in range(6):
        await add(client, "once", idempotency_key=key)
    assert (await add(client, "next")).json()["id"] == 2


async def test_a_change_names_what_it_changes(client: httpx2.AsyncClient) -> None:
    await add(client, "one")
    bodies: list[object] = [{}, {"goal_name": None}, {"id": 2}, []]
    for body in bodies:
        assert (await client.patch(f"{GOALS}/1", json=body)).status_code == 422


@pytest.mark.parametrize(
    "key", ["", "key", '"', '""', "1", f'"{UUID}', f"{{{UUID}}}", UUID.replace("-", ""), "x" * 9000]
)
async def test_a_key_that_is_no_uuid_is_refused_by_its_name(client: httpx2.AsyncClient, key: str) -> None:
    response = await add(client, "a", idempotency_key=key)
    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == ["Idempotency-Key"]


async def test_two_keys_are_no_key(client: httpx2.AsyncClient) -> None:
    headers = [("idempotency-key", str(uuid4())), ("idempotency-key", str(uuid4()))]
    assert (await client.post(GOALS, json={"goal_name": "a"}, headers=headers)).status_code == 422


@pytest.mark.parametrize(("number", "limit"), [(0, 50), (1, 1), (2, 1), (50, 50), (51, 50), (100, 100), (176, 33)])
async def test_following_next_shows_each_goal_once(
    client: httpx2.AsyncClient, database: Database, number: int, limit: int
) -> None:
    ids = await fill(database, number, gaps=range(3, number, 7))
    seen: list[int] = []
    target: str | None = f"{GOALS}?limit={limit}"
    while target is not None:
        page = await client.get(target)
        goals = page.json()["goals"]
        assert len(goals) == limit or "link" not in page.headers
        seen += [goal["id"] for goal in goals]
        link = re.fullmatch(r'<([^>]+)>; rel="next"', page.headers.get("link", ""))
        target = link and link[1]
    assert seen == ids


async def test_a_page_has_fifty_goals_unless_asked_otherwise(client: httpx2.AsyncClient, database: Database) -> None:
    await fill(database, 150)
    page = await client.get(GOALS)
    assert len(page.json()["goals"]) == PAGE_SIZE
    assert page.headers["link"] == f'<{GOALS}?limit=50&before=101>; rel="next"'
    assert len((await client.get(GOALS, params={"limit": 100})).json()["goals"]) == 100
    assert page.json() == (await client.get(f"{GOALS}?")).json()


@pytest.mark.parametrize(
    "limit", ["0", "101", "-1", "+1", "01", "1.0", "", " 1", "1e1", "x", "\N{ARABIC-INDIC DIGIT ONE}", "9" * 1000]
)
async def test_a_limit_is_a_whole_number_up_to_a_hundred(client: httpx2.AsyncClient, limit: str) -> None:
    response = await client.get(GOALS, params={"limit": limit})
    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == ["limit"]


async def test_a_head_is_answered_like_its_get(client: httpx2.AsyncClient) -> None:
    await add(client, "one")
    for target in (GOALS, f"{GOALS}/1", f"{GOALS}/9", "/openapi.json"):
        get, head = await client.get(target), await client.head(target)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers.get("etag") == get.headers.get("etag")


@pytest.mark.usefixtures("undated")
async def test_a_goal_of_unknown_age_has_a_null_for_it(client: httpx2.AsyncClient) -> None:
    goal = (await client.get(f"{GOALS}/1")).json()
    assert (goal["id"], goal["goal_name"], goal["created_at"]) == (1, "old", None)


async def test_a_removal_with_if_match_needs_the_goal_as_it_was_read(client: httpx2.AsyncClient) -> None:
    etag = (await add(client, "read")).headers["etag"]
    for expected in ('"another"', '"another", "one more"'):
        assert (await client.delete(f"{GOALS}/1", headers={"if-match": expected})).status_code == 412
    await client.patch(f"{GOALS}/1", json={"goal_name": "changed"})
    assert (await client.delete(f"{GOALS}/1", headers={"if-match": etag})).status_code == 412
    etag = (await client.get(f"{GOALS}/1")).headers["etag"]
    assert (await client.delete(f"{GOALS}/1", headers={"if-match": etag})).status_code == 204
    assert (await client.delete(f"{GOALS}/1", headers={"if-match": "*"})).status_code == 404
