"""No input breaks the service: each has its status, no answer shows internals, and others are served."""

import asyncio
import html
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from urllib.parse import quote

import httpx2
import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from goals.database import Database
from goals.schemas import NAME_LENGTH
from goals.settings import Settings
from tests.conftest import LIMITS, WIDE, Service, serving
from tests.wire import PATIENCE, Connection, ask, check, chunked, dripping, form, request

FORM = {"content-type": "application/x-www-form-urlencoded"}
KEY = "01890a5d-ac96-774b-bcce-b302099a8057"


@pytest.fixture(autouse=True)
async def _unharmed(service: Service, caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """After each test the service still serves, and neither Hypercorn nor asyncio has met an exception."""
    yield
    check(reply := await ask(service.port, request("GET", "/health")))
    assert (reply.status, reply.body) == (200, b"OK")
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def count(database: Database) -> int:
    (row,) = await database.fetch(text("SELECT count(*) AS number FROM goals"))
    return int(row.number)


BAD_NAMES = {
    "nothing": "",
    "spaces": "   ",
    "a no-break space": "\u00a0",
    "an ideographic space": "\u3000",
    "zero-width characters": "\u200b\u200c\u200d\ufeff\u2060",
    "a soft hyphen": "\u00ad",
    "hangul fillers": "\u115f\u3164\uffa0",
    "a blank braille pattern": "\u2800",
    "marks of direction": "\u200e\u200f\u061c",
    "one character too many": "x" * (NAME_LENGTH + 1),
    "one emoji too many": "\N{ROCKET}" * (NAME_LENGTH + 1),
    "a NUL": "a\0b",
    "a C0 control": "a\x1bb",
    "a tab": "a\tb",
    "a line feed": "a\nb",
    "a carriage return": "a\rb",
    "a line break at the end": "a\r\n",
    "a DEL": "a\x7fb",
    "a C1 control": "a\x85b",
    "a line separator": "a\u2028b",
    "a paragraph separator": "a\u2029b",
    "an override of direction": "a\u202eb",
    "an embedding of direction": "a\u202ab",
    "variation selectors": "\ufe0e\ufe0f\U000e0100\U000e01ef",
    "tags": "\U000e0001\U000e0067\U000e007f",
    "format characters": "\u0600\u06dd\u180e\ufff9\U0001d173",
    "a blank notehead": "\U0001d159",
    "blanks between what shows nothing": "\ufe0f \u2800\u3164 \U000e0020",
    "an isolate of direction": "a\u2066b",
    "a noncharacter": "a\ufffeb",
    "an Arabic noncharacter": "a\ufdd0b",
    "a noncharacter of the last plane": "a\U0010ffffb",
}


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
async def test_a_bad_name_comes_back_with_the_reason_and_a_fresh_key(
    client: httpx2.AsyncClient, database: Database, name: str
) -> None:
    response = await client.post("/add_goal", data={"goal_name": name, "idempotency_key": KEY})
    assert response.status_code == 422
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert re.search(r'<p id="message">[A-Z].+\.</p>', response.text)
    assert 'aria-invalid="true"' in response.text
    # Parsed as a browser does it, the field holds what was typed.
    (typed,) = re.findall(r'name="goal_name" value="([^"]*)"', response.content.decode())
    assert html.unescape(typed) == html.unescape(html.escape(name))
    assert KEY not in response.text
    assert await count(database) == 0


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
async def test_a_bad_name_is_a_named_field_of_the_apis_answer(client: httpx2.AsyncClient, name: str) -> None:
    response = await client.post("/api/v1/goals", json={"goal_name": name})
    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == ["goal_name"]


GOOD_NAMES = {
    "SQL": "'); DROP TABLE goals;--",
    "HTML": '<img src=x onerror=alert(1)> & "quotes"',
    "a script": "</p><script>alert(1)</script>",
    "a template": "{{ 7 * 7 }}{% raw %}",
    "emoji joined by zero-width joiners": "\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "right-to-left text": "لتعلم العربية",
    "combining marks": "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢",
    "a percent sign and a plus": "100% + 1&2=3;4",
    "the exact limit": "x" * NAME_LENGTH,
    "an emoji with its variation selector at the end": "\u2764\ufe0f",
    "a flag of tags at the end": "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "a variation selector first": "\ufe0fa",
    "the exact limit in emoji": "\N{ROCKET}" * NAME_LENGTH,
    "one letter": "a",
}


@pytest.mark.parametrize("name", GOOD_NAMES.values(), ids=GOOD_NAMES)
async def test_an_odd_name_is_taken_as_it_is_and_shown_escaped(
    client: httpx2.AsyncClient, database: Database, name: str
) -> None:
    for _ in range(2):
        response = await client.post("/add_goal", data={"goal_name": f"  {name}\u3000", "idempotency_key": KEY})
        assert (response.status_code, response.headers["location"]) == (303, "/")
    assert await count(database) == 1
    page = (await client.get("/")).text
    (shown,) = re.findall(r"<bdi>([^<]*)</bdi>", page)
    assert html.unescape(shown) == name
    assert "<script>" not in page
    assert "<img src=x" not in page


BROKEN_ENCODINGS = {
    "a lone surrogate": b"%ED%A0%80",
    "an overlong slash": b"%C0%AF",
    "an overlong NUL": b"%C0%80",
    "a character cut short": b"%E2%82",
    "Latin-1": b"caf%E9",
    "raw Latin-1": b"caf\xe9",
    "a raw cut character": b"\xe2\x82",
    "beyond Unicode": b"%F4%90%80%80",
    "a broken escape": b"%zz",
    "half an escape": b"100%2",
    "a percent sign at the end": b"100%",
    "a wide escape": b"%u20AC",
}


@pytest.mark.parametrize("value", BROKEN_ENCODINGS.values(), ids=BROKEN_ENCODINGS)
@pytest.mark.parametrize("place", [b"goal_name=%b", b"%b=x", b"goal_name=x&idempotency_key=%b"])
async def test_bytes_that_are_no_text_are_refused_and_not_repaired(
    service: Service, place: bytes, value: bytes
) -> None:
    check(reply := await ask(service.port, form("/add_goal", place % value)))
    assert reply.status == 400


BAD_FORMS = {
    "no field": "",
    "no name": f"idempotency_key={KEY}",
    "the name twice": "goal_name=a&goal_name=b",
    "the name twice, once encoded": "goal_name=a&goal%5Fname=b",
    "the key twice": f"goal_name=a&idempotency_key={KEY}&idempotency_key={KEY}",
    "an unknown field": "goal_name=a&admin=1",
    "a field without a name": "goal_name=a&=b",
    "hundreds of fields": "goal_name=a&" + "&".join(f"field{number}=" for number in range(900)),
    "nothing but ampersands": "&" * 9000,
    "nothing but equal signs": "=" * 9000,
    "PHP's arrays": "goal_name[]=a",
    "a semicolon for an ampersand": "goal_name=a;goal_name=b&admin",
    "a key that is a word": "goal_name=a&idempotency_key=key",
    "an empty key": "goal_name=a&idempotency_key=",
    "a key without hyphens": f"goal_name=a&idempotency_key={KEY.replace('-', '')}",
    "a key in braces": f"goal_name=a&idempotency_key=%7B{KEY}%7D",
    "a key with a line break": f"goal_name=a&idempotency_key={KEY}%0A",
    "a key as a URN": f"goal_name=a&idempotency_key=urn:uuid:{KEY}",
    "a key with other digits": f"goal_name=a&idempotency_key={KEY[:-1]}%D9%A7",
    "JSON in a form": '{"goal_name": "a"}',
}


@pytest.mark.parametrize("body", BAD_FORMS.values(), ids=BAD_FORMS)
async def test_a_form_with_other_fields_than_ours_is_refused(service: Service, database: Database, body: str) -> None:
    check(reply := await ask(service.port, form("/add_goal", body)))
    assert reply.status == 422
    assert await count(database) == 0


async def test_a_value_in_the_query_is_no_field_of_the_form(service: Service, database: Database) -> None:
    check(reply := await ask(service.port, form("/add_goal?goal_name=a", "")))
    assert reply.status == 422
    check(reply := await ask(service.port, form("/remove_goal?goal_id=1", "")))
    assert reply.status == 422
    assert await count(database) == 0


CONTENT_TYPES = {
    "none": [],
    "an empty one": ["Content-Type: "],
    "plain text": ["Content-Type: text/plain"],
    "JSON": ["Content-Type: application/json"],
    "multipart": ["Content-Type: multipart/form-data; boundary=x"],
    "a longer word": ["Content-Type: application/x-www-form-urlencoded-not"],
    "another charset": ["Content-Type: application/x-www-form-urlencoded; charset=iso-8859-1"],
    "UTF-7": ["Content-Type: application/x-www-form-urlencoded; charset=utf-7"],
    "a charset that is none": ["Content-Type: application/x-www-form-urlencoded; charset=\xe9"],
    "two of them": ["Content-Type: application/x-www-form-urlencoded", "Content-Type: text/plain"],
    "two in one": ["Content-Type: application/x-www-form-urlencoded, text/plain"],
    "a thousand parameters": ["Content-Type: application/x-www-form-urlencoded" + ';"' * 5000],
    "gzip": ["Content-Type: application/x-www-form-urlencoded", "Content-Encoding: gzip"],
    "a chain of encodings": ["Content-Type: application/x-www-form-urlencoded", "Content-Encoding: identity, br"],
    "two encodings": [
        "Content-Type: application/x-www-form-urlencoded",
        "Content-Encoding: identity",
        "Content-Encoding: br",
    ],
}


@pytest.mark.parametrize("path", ["/add_goal", "/remove_goal"])
@pytest.mark.parametrize("lines", CONTENT_TYPES.values(), ids=CONTENT_TYPES)
async def test_a_form_in_another_type_or_encoding_is_refused(service: Service, path: str, lines: list[str]) -> None:
    check(reply := await ask(service.port, request("POST", path, *lines, body=b"goal_name=a")))
    assert reply.status == 415


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Type: application/x-www-form-urlencoded;charset=UTF-8"],
        ['Content-Type: APPLICATION/X-WWW-FORM-URLENCODED ; charset="utf-8"'],
        ["Content-Type: application/x-www-form-urlencoded", "Content-Encoding: Identity"],
    ],
)
@pytest.mark.usefixtures("database")
async def test_the_same_type_in_other_words_is_taken(service: Service, lines: list[str]) -> None:
    check(reply := await ask(service.port, request("POST", "/add_goal", *lines, body=b"goal_name=a")))
    assert reply.status == 303


TOO_LONG = b"goal_name=" + b"a" * LIMITS.body_size
LONG_BODIES = {
    "declared and sent": [form("/add_goal", TOO_LONG)],
    "declared by someone who waits to be asked": [
        form("/add_goal", TOO_LONG, "Expect: 100-continue").removesuffix(TOO_LONG)
    ],
    "declared beyond any number": [
        request("POST", "/add_goal", "Content-Type: application/x-www-form-urlencoded", "Content-Length: " + "9" * 19)
    ],
    "streamed": list(chunked(TOO_LONG)),
    "streamed in small pieces": list(chunked(*[b"a" * 100] * 200)),
    "twenty megabytes": [form("/add_goal", b"a" * 20_000_000)],
    "twenty megabytes in chunks": list(chunked(*[b"a" * 65536] * 300)),
    "to nowhere": list(chunked(*[b"a" * 65536] * 300, path="/nowhere")),
    "with a GET": [request("GET", "/", body=TOO_LONG)],
    "as JSON": [request("POST", "/api/v1/goals", "Content-Type: application/json", body=TOO_LONG)],
}


@pytest.mark.parametrize("pieces", LONG_BODIES.values(), ids=LONG_BODIES)
async def test_a_body_of_more_than_16_kb_is_refused_and_the_connection_closed(
    service: Service, pieces: list[bytes]
) -> None:
    check(reply := await ask(service.port, *pieces, closes=True))
    assert reply.status == 413
    assert reply.headers["connection"] == "close"


async def test_nothing_is_kept_of_a_body_that_was_refused(service: Service) -> None:
    """Hypercorn's task for a connection ends with it, though pieces of the body were still to be handed over."""
    tasks = asyncio.all_tasks()
    large = b"".join(chunked(*[b"a" * 100] * 1000))
    foreign = large.replace(b"\r\n", b"\r\nSec-Fetch-Site: cross-site\r\n", 1)
    for data, status in [(large, 413), (foreign, 403)] * 4:
        async with asyncio.timeout(PATIENCE), Connection(service.port) as connection:
            await connection.send(data)
            assert (await connection.read_reply()).status == status
    left = True
    async with asyncio.timeout(PATIENCE):
        while left:
            await asyncio.sleep(0.01)
            left = bool(asyncio.all_tasks() - tasks)


async def test_a_body_of_16_kb_is_read(service: Service) -> None:
    body = b"goal_name=".ljust(LIMITS.body_size, b"a")
    for pieces in ([form("/add_goal", body)], chunked(body)):
        check(reply := await ask(service.port, *pieces))
        assert (reply.status, b"A name has at most" in reply.body) == (422, True)


SLOW = {
    "a body that stalls": (form("/add_goal", "goal_name=" + "a" * 90)[:-50], b""),
    "a body that drips": (form("/add_goal", "goal_name=" + "a" * 90)[:-80], b"a"),
    "a body that never starts": (form("/add_goal", "a" * 90)[:-90], b""),
    "a chunk that stalls": (b"".join(chunked(b"a" * 90))[:-50], b""),
    "chunks that drip": (next(chunked()), b"1\r\na\r\n"),
    "a chunk beyond any number": (next(chunked()) + b"FFFFFFFFFFFFFFFFFF\r\n", b"a"),
    "trailers that drip": (b"".join(chunked(b"goal_name=a"))[:-2], b"X: y\r\n"),
    "a body for nobody": (form("/nowhere", "a" * 90)[:-50], b"a"),
    "a body of a GET": (request("GET", "/health", body=b"a" * 90)[:-50], b""),
    "a body promised to someone who waits": (form("/add_goal", "a" * 90, "Expect: 100-continue")[:-90], b""),
    "JSON that drips": (request("POST", "/api/v1/goals", "Content-Type: application/json", body=b" " * 90)[:-80], b" "),
}


@pytest.fixture
async def impatient(settings: Settings, schema: None) -> AsyncIterator[Service]:
    """A service that waits for a body only half a second, though for everything else long."""
    async with serving(settings, replace(WIDE, body_deadline=0.5)) as service:
        yield service


async def test_a_body_that_does_not_arrive_in_time_is_given_up_whatever_trickles_in(impatient: Service) -> None:
    """All at once; that it is 408 shows that it did not take the request's whole time."""

    async def give_up(start: bytes, drop: bytes) -> tuple[int, str]:
        async with asyncio.timeout(PATIENCE), Connection(impatient.port) as connection:
            await connection.send(start)
            async with dripping(connection, drop):
                check(reply := await connection.read_reply())
                await connection.read_end()
                return reply.status, reply.headers["connection"]

    slow = asyncio.gather(*(give_up(start, drop) for start, drop in SLOW.values()))
    while not slow.done():
        # Meanwhile others are served.
        assert (await ask(impatient.port, request("GET", "/"))).status == 200
        await asyncio.sleep(0.1)
    assert dict(zip(SLOW, await slow, strict=True)) == dict.fromkeys(SLOW, (408, "close"))


async def test_a_client_that_leaves_with_half_a_body_sent_adds_nothing(service: Service, database: Database) -> None:
    async with Connection(service.port) as connection:
        await connection.send(form("/add_goal", "goal_name=abc")[:-2])
    async with asyncio.timeout(PATIENCE), Connection(service.port) as connection:
        await connection.send(form("/add_goal", "goal_name=abc")[:-2])
        connection.end_sending()
        check(reply := await connection.read_reply())  # who has ended only its own half is there to read
        await connection.read_end()
    assert reply.status == 400
    assert await count(database) == 0


BAD_IDS = {
    "nothing": "",
    "a word": "one",
    "a plus sign": "+1",
    "a minus sign": "-1",
    "zero": "0",
    "a leading zero": "01",
    "a space before": " 1",
    "a space after": "1 ",
    "a line break after": "1\n",
    "a NUL": "1\0",
    "a decimal point": "1.0",
    "an exponent": "1e3",
    "hexadecimal": "0x1",
    "an underscore": "1_0",
    "a comma": "1,000",
    "Arabic digits": "١٢",
    "fullwidth digits": "\N{FULLWIDTH DIGIT ONE}\N{FULLWIDTH DIGIT TWO}",
    "a superscript": "²",
    "thousands of digits": "9" * 1500,
    "forty digits": "9" * 40,
    "not a number": "NaN",
    "SQL": "1 OR 1=1",
}


@pytest.mark.parametrize("goal_id", BAD_IDS.values(), ids=BAD_IDS)
async def test_an_id_that_is_not_a_canonical_decimal_is_refused_everywhere(
    client: httpx2.AsyncClient, database: Database, goal_id: str
) -> None:
    await client.post("/add_goal", data={"goal_name": "stays"})
    assert (await client.post("/remove_goal", data={"goal_id": goal_id})).status_code == 422
    for name in ("before", "after"):
        assert (await client.get("/", params={name: goal_id})).status_code == 422
    assert (await client.get("/api/v1/goals", params={"before": goal_id})).status_code == 422
    # An empty one is another address.
    path = f"/api/v1/goals/{quote(goal_id or ' ', safe='')}"
    for method in ("GET", "PATCH", "DELETE"):
        assert (await client.request(method, path, json={"goal_name": "a"})).status_code == 422
    assert await count(database) == 1


async def test_an_id_given_twice_is_refused(service: Service) -> None:
    check(reply := await ask(service.port, form("/remove_goal", "goal_id=1&goal_id=2")))
    assert reply.status == 422
    check(reply := await ask(service.port, request("GET", "/?before=1&before=2")))
    assert reply.status == 422
    check(reply := await ask(service.port, request("GET", "/?before=1&after=2")))
    assert reply.status == 422


@pytest.mark.parametrize("goal_id", ["99", "2147483648", "9223372036854775807", "9223372036854775808", "9" * 39])
async def test_an_absent_id_is_no_error_for_the_form_and_404_for_the_api(
    client: httpx2.AsyncClient, goal_id: str
) -> None:
    response = await client.post("/remove_goal", data={"goal_id": goal_id})
    assert (response.status_code, response.headers["location"]) == (303, "/")
    for method in ("GET", "PATCH", "DELETE"):
        response = await client.request(method, f"/api/v1/goals/{goal_id}", json={"goal_name": "a"})
        assert response.status_code == 404
    assert (await client.get("/", params={"before": goal_id})).status_code == 200
    assert (await client.get("/", params={"after": goal_id})).status_code == 200
    assert (await client.get("/api/v1/goals", params={"before": goal_id})).status_code == 200


FOREIGN = {
    "cross-site": ["Sec-Fetch-Site: cross-site"],
    "same-site": ["Sec-Fetch-Site: same-site"],
    "an unknown site": ["Sec-Fetch-Site: anything"],
    "an empty site": ["Sec-Fetch-Site: "],
    "cross-site with our origin": ["Sec-Fetch-Site: cross-site", "Origin: http://localhost"],
    "another origin": ["Origin: https://evil.example"],
    "an origin that begins like ours": ["Origin: http://localhost.evil.example"],
    "an origin that ends like ours": ["Origin: http://evil-localhost"],
    "another port": ["Origin: http://localhost:81"],
    "no origin to speak of": ["Origin: null"],
    "no scheme": ["Origin: localhost"],
    "the port of another scheme": ["Origin: http://localhost:443"],
    "no TLS, and its port": ["Origin: https://localhost:80"],
    "a scheme of its own": ["Origin: chrome-extension://localhost"],
}


@pytest.mark.parametrize("lines", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/add_goal"),
        ("POST", "/remove_goal"),
        ("POST", "/api/v1/goals"),
        ("PATCH", "/api/v1/goals/1"),
        ("DELETE", "/api/v1/goals/1"),
    ],
)
async def test_what_another_site_sends_is_refused(service: Service, method: str, path: str, lines: list[str]) -> None:
    check(reply := await ask(service.port, request(method, path, *lines, body=b""), closes=True))
    assert reply.status == 403


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["Sec-Fetch-Site: same-origin"],
        ["Sec-Fetch-Site: none"],
        ["Sec-Fetch-Site: same-origin", "Origin: https://evil.example"],
        ["Origin: http://localhost"],
        ["Origin: https://LocalHost"],
    ],
    ids=str,
)
@pytest.mark.usefixtures("database")
async def test_what_our_page_or_a_program_sends_is_taken(service: Service, lines: list[str]) -> None:
    check(reply := await ask(service.port, form("/add_goal", "goal_name=a", *lines)))
    assert reply.status == 303


PORTS = {
    "a proxy that names its port": ("localhost:80", "http://localhost", 303),
    "a gateway with TLS that names its port": ("localhost:443", "https://localhost", 303),
    "TLS that ended before the proxy": ("localhost:80", "https://localhost", 303),
    "a client that names what is understood": ("localhost", "http://localhost:80", 303),
    "the same with TLS": ("localhost", "https://localhost:443", 303),
    "both name it": ("LOCALHOST:80", "http://localhost:80", 303),
    "an empty port": ("localhost:", "http://localhost", 303),
    "IPv6": ("[::1]:80", "http://[::1]", 303),
    "another port on both": ("localhost:8080", "http://localhost:8080", 303),
    "another port for the service": ("localhost:8080", "http://localhost", 403),
    "another port for the page": ("localhost:80", "http://localhost:8080", 403),
    "a page without TLS": ("localhost:443", "http://localhost", 403),
    "another host": ("localhost:80", "http://127.0.0.1", 403),
}


@pytest.mark.parametrize(("host", "origin", "status"), PORTS.values(), ids=PORTS)
@pytest.mark.usefixtures("database")
async def test_a_schemes_own_port_makes_no_other_origin(service: Service, host: str, origin: str, status: int) -> None:
    """As `proxy_set_header Host $host:$server_port` of nginx makes it, for browsers that do not send Sec-Fetch-Site."""
    lines = ("Content-Type: application/x-www-form-urlencoded", f"Origin: {origin}")
    sent = request("POST", "/add_goal", *lines, body=b"goal_name=a", host=host)
    check(reply := await ask(service.port, sent, closes=status == 403))
    assert reply.status == status


async def test_a_refusal_of_another_site_names_host_and_origin_in_the_log(service: Service) -> None:
    with capture_logs() as events:
        for origin in ("http://goals.lan", "http://x\xff\x9b31m" + "a" * 900):
            sent = request("POST", "/add_goal", f"Origin: {origin}", body=b"", host="127.0.0.1:8080")
            assert (await ask(service.port, sent, closes=True)).status == 403
        await ask(service.port, request("POST", "/add_goal", "Sec-Fetch-Site: same-site", body=b""), closes=True)
    plain, long, fetch = [event for event in events if "cross-origin request refused" in event["event"]]
    assert (plain["host"], plain["origin"]) == ("127.0.0.1:8080", "http://goals.lan")
    assert "the proxy must pass Host unchanged" in plain["event"]
    assert long["origin"].startswith("http://x\\xff\\x9b31maaa")
    assert len(long["origin"]) < 300
    assert (fetch["sec_fetch_site"], "origin" in fetch) == ("same-site", False)


async def test_an_origin_is_foreign_where_no_host_is_named(service: Service) -> None:
    sent = b"POST /add_goal HTTP/1.0\r\nOrigin: null\r\nContent-Length: 0\r\n\r\n"
    check(reply := await ask(service.port, sent, closes=True))
    assert reply.status == 403


async def test_another_site_may_link_to_us(service: Service) -> None:
    for method in ("GET", "HEAD"):
        lines = ("Sec-Fetch-Site: cross-site", "Origin: https://evil.example")
        check(reply := await ask(service.port, request(method, "/", *lines), head=method == "HEAD"))
        assert reply.status == 200


async def test_only_our_hosts_are_answered_where_they_are_named(settings: Settings) -> None:
    ours = settings.model_copy(update={"goals_hosts": ("localhost", "[::1]")})
    async with serving(ours) as service:
        for host in ("localhost", "LOCALHOST:8443", "localhost:", "[::1]:8080"):
            assert (await ask(service.port, request("GET", "/health", host=host))).status == 200
        for host in ("evil.example", "localhost.evil.example", "localhost:x", "[::2]", "", "localhost."):
            check(reply := await ask(service.port, request("GET", "/health", host=host), closes=True))
            assert reply.status == 400
        check(reply := await ask(service.port, b"GET /health HTTP/1.0\r\n\r\n", closes=True))
        assert reply.status == 400
        # Probes come by address.
        probe = request("GET", "/livez", "Connection: close", host="127.0.0.1:9464")
        assert (await ask(service.ops_port, probe, closes=True)).status == 200


async def test_on_a_loopback_address_only_its_names_are_answered(settings: Settings) -> None:
    """Another site's DNS may lead a browser here, and its page would then be taken for ours (DNS rebinding)."""
    for names, others in (((), ()), (("goals.example",), ("goals.example",))):
        async with serving(settings.model_copy(update={"goals_hosts": names})) as service:
            loopback = ("localhost", "LOCALHOST:9464", "127.0.0.1", "127.0.0.1:8080", "[::1]:80", *others)
            for port, answered in ((service.port, others or loopback), (service.ops_port, loopback)):
                for host in ("evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1", *loopback):
                    sent = request("GET", "/", "Sec-Fetch-Site: same-origin", "Connection: close", host=host)
                    reply = await ask(port, sent, closes=True)
                    assert (reply.status == 400) == (host not in answered), host


async def test_elsewhere_any_name_leads_here(settings: Settings) -> None:
    async with serving(settings.model_copy(update={"goals_bind": "0.0.0.0"})) as service:  # noqa: S104  as in a container
        for port in service:
            reply = await ask(port, request("GET", "/nowhere", "Connection: close", host="goals.example"), closes=True)
            assert reply.status == 404


ALLOWED = {
    "/": "GET, HEAD",
    "/add_goal": "POST",
    "/remove_goal": "POST",
    "/goals/1": "GET, HEAD, POST",
    "/static/goals.css": "GET, HEAD",
    "/health": "GET, HEAD",
    "/openapi.json": "GET, HEAD",
    "/api/v1/goals": "GET, HEAD, POST",
    "/api/v1/goals/1": "DELETE, GET, HEAD, PATCH",
}


@pytest.mark.parametrize(("path", "allowed"), ALLOWED.items())
async def test_a_method_the_address_does_not_have_is_405_with_those_it_has(
    service: Service, path: str, allowed: str
) -> None:
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY", "FOO", "X" * 300):
        if method not in allowed.split(", "):
            check(reply := await ask(service.port, request(method, path), head=method == "HEAD"))
            assert (reply.status, reply.headers["allow"]) == (405, allowed)


STRANGE_PATHS = [
    "/nowhere",
    "/health/",
    "/goals",
    "/goals/",
    "/goals/1/",
    "/add_goal/",
    "//",
    "//evil.example/",
    "//evil.example/add_goal",
    "///evil.example",
    "/\\evil.example",
    "/%5Cevil.example",
    "/%2F%2Fevil.example/",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/static/",
    "/static/../goals.py",
    "/static/../../etc/passwd",
    "/static/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "/static/..%5c..%5cgoals.py",
    "/static/%252e%252e%252fgoals.py",
    "/static/goals.css%00.html",
    "/static//etc/passwd",
    "/static/nothing.css",
    "/.git/config",
    "/%00",
    "/%ff%fe",
    "/%ed%a0%80",
    "/%zz",
    "/health%20",
    "/health;x=y",
    "/health#top",
    "/HEALTH",
    "/metrics",
    "/readyz",
    "/livez",
    "/api",
    "/api/v1/goals/",
    "/api/v1/goals/1/",
    "/api/v1/goals/1/2",
    "/api/v1/goals%2F1/2",
    "*",
    "http://localhost/nowhere",
]


@pytest.mark.parametrize("target", STRANGE_PATHS)
async def test_an_unknown_address_is_404_and_leads_nowhere(service: Service, target: str) -> None:
    check(reply := await ask(service.port, request("GET", target)))
    assert (reply.status, "location" in reply.headers) == (404, False)
    assert b"root:" not in reply.body


ABSOLUTE = {
    "an address": ("http://localhost/api/v1/goals?limit=1", "localhost", 200),
    "with a port": ("http://127.0.0.1:8080/health", "localhost", 200),
    "in capitals": ("HTTP://LOCALHOST/health", "localhost", 200),
    "over TLS": ("https://localhost/health", "localhost", 200),
    "no path": ("http://localhost", "localhost", 200),
    "no path but a query": ("http://localhost?utm=1", "localhost", 200),
    "an escaped path": ("http://localhost/%68ealth", "localhost", 200),
    "the same path twice": ("http://localhost//health", "localhost", 404),
    "a host that the field contradicts": ("http://localhost/health", "evil.example", 200),
    "another host": ("http://evil.example/health", "localhost", 400),
    "no host": ("http:///health", "localhost", 400),
    "a port alone": ("http://:80/health", "localhost", 400),
    "a name and a password": ("http://a:b@localhost/health", "localhost", 400),
    "another scheme": ("ftp://localhost/health", "localhost", 400),
    "no scheme": ("health", "localhost", 400),
    "nothing": ("?", "localhost", 400),
    "an authority": ("localhost:443", "localhost", 400),
}


@pytest.mark.parametrize(("target", "host", "status"), ABSOLUTE.values(), ids=ABSOLUTE)
@pytest.mark.usefixtures("database")
async def test_a_target_in_absolute_form_is_understood_and_its_host_counts(
    service: Service, target: str, host: str, status: int
) -> None:
    check(reply := await ask(service.port, request("GET", target, host=host), closes=status == 400))
    assert reply.status == status


async def test_an_absolute_target_is_understood_in_a_post_and_on_the_ops_port(
    service: Service, database: Database
) -> None:
    ours = ("Content-Type: application/x-www-form-urlencoded", "Origin: http://localhost")
    sent = request("POST", "http://localhost/add_goal", *ours, body=b"goal_name=a", host="evil.example")
    check(reply := await ask(service.port, sent))
    assert (reply.status, await count(database)) == (303, 1)
    foreign = sent.replace(b"http://localhost/add", b"http://127.0.0.1/add")
    check(reply := await ask(service.port, foreign, closes=True))
    assert reply.status == 403
    reply = await ask(service.ops_port, request("GET", "http://localhost/livez", "Connection: close"), closes=True)
    assert (reply.status, reply.body) == (200, b"live")


@pytest.mark.parametrize("start", ["/", "/nowhere?", "/api/v1/goals?before="])
async def test_an_address_of_more_than_2_kb_is_refused(service: Service, start: str) -> None:
    check(reply := await ask(service.port, request("GET", start.ljust(LIMITS.target_size, "1"))))
    assert reply.status in {404, 422}
    check(reply := await ask(service.port, request("GET", start.ljust(LIMITS.target_size + 1, "1")), closes=True))
    assert reply.status == 414


async def test_a_header_over_the_limit_is_refused(service: Service) -> None:
    for lines in (
        [f"X: {'a' * LIMITS.headers_size}"],
        [f"X-{number}: {'a' * 1000}" for number in range(17)],
        [f"X-{number}: a" for number in range(LIMITS.headers_number)],
        ["X: a"] * LIMITS.headers_number,
        ["If-None-Match: " + '"x", ' * 4000],
    ):
        check(reply := await ask(service.port, request("GET", "/health", *lines), closes=True))
        assert reply.status == 431
    check(reply := await ask(service.port, request("GET", "/health", *["X: a"] * (LIMITS.headers_number - 1))))
    assert reply.status == 200
    # What does not fit into Hypercorn's buffer never reaches the application.
    for monster in (request("GET", "/" + "a" * 140_000), request("GET", "/", f"X: {'a' * 140_000}")):
        check(reply := await ask(service.port, monster, closes=True))
        assert reply.status == 431


HOST = b"Host: localhost\r\n"
POST = b"POST /add_goal HTTP/1.1\r\n" + HOST + b"Content-Type: application/x-www-form-urlencoded\r\n"
BODY = b"goal_name=a"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNK = b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"
NO_HTTP = {
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET / HTTP/1.1\r\n" + HOST + b"Host: evil.example\r\n\r\n",
    "the same Host twice": b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
    "two lengths": POST + LENGTH + b"Content-Length: %d\r\n\r\n" % (len(BODY) + 1) + BODY,
    "two lengths in one": POST + b"Content-Length: 11, 12\r\n\r\n" + BODY,
    "a negative length": POST + b"Content-Length: -11\r\n\r\n" + BODY,
    "a length with a sign": POST + b"Content-Length: +11\r\n\r\n" + BODY,
    "a length in hexadecimal": POST + b"Content-Length: 0xb\r\n\r\n" + BODY,
    "an empty length": POST + b"Content-Length: \r\n\r\n",
    "a length of thirty digits": POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
    "a length and chunks": POST + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK,
    "chunks and a length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + CHUNK,
    "chunks in HTTP/1.0": POST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK,
    "a chunk size that is none": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a negative chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a chunk longer than it says": POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\n" + HOST + b"X : y\r\n\r\n",
    "a header without a name": b"GET / HTTP/1.1\r\n" + HOST + b": y\r\n\r\n",
    "a header without a colon": b"GET / HTTP/1.1\r\n" + HOST + b"xyz\r\n\r\n",
    "a NUL in a header": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\0b\r\n\r\n",
    "a lone CR in a header": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\rb\r\n\r\n",
    "a folded first header": b"GET / HTTP/1.1\r\n X: y\r\n" + HOST + b"\r\n",
    "a TLS hello": bytes.fromhex("16030100f8010000f40303") + bytes(range(16, 254)),
    "an old SSL hello": b"\x80\x2e\x01\x00\x02\r\n\r\n",
    "SMTP": b"EHLO localhost\r\nMAIL FROM: <a@b>\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "HTTP/9.9": b"GET / HTTP/9.9\r\n" + HOST + b"\r\n",
    "HTTP/2.0 without its preface": b"GET / HTTP/2.0\r\n" + HOST + b"\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\n" + HOST + b"\r\n",
    "HTTP/x": b"GET / HTTP/x\r\n" + HOST + b"\r\n",
    "another protocol": b"GET / SIP/2.0\r\n" + HOST + b"\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n",
    "a space in the address": b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "raw UTF-8 in the address": "GET /é HTTP/1.1\r\n".encode() + HOST + b"\r\n",
    "a NUL in the address": b"GET /\0 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method that is no word": b"G\xc3\x89T / HTTP/1.1\r\n" + HOST + b"\r\n",
    "nothing but zeros": bytes(64) + b"\r\n\r\n",
}


@pytest.mark.parametrize("data", NO_HTTP.values(), ids=NO_HTTP)
async def test_what_is_no_http_is_refused_and_the_connection_closed(
    service: Service, database: Database, data: bytes
) -> None:
    check(reply := await ask(service.port, data, closes=True))
    assert (reply.status, reply.headers["connection"]) == (400, "close")
    assert await count(database) == 0


@pytest.mark.parametrize("coding", ["gzip", "gzip, chunked", "chunked, chunked", "identity", "xchunked"])
async def test_a_transfer_coding_nobody_knows_is_501(service: Service, coding: str) -> None:
    data = POST + f"Transfer-Encoding: {coding}\r\n\r\n".encode() + b"0\r\n\r\n"
    check(reply := await ask(service.port, data, closes=True))
    assert reply.status == 501


async def test_a_request_smuggled_behind_another_is_never_answered(service: Service, database: Database) -> None:
    smuggled = form("/add_goal", "goal_name=smuggled")
    data = POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG" + smuggled
    check(reply := await ask(service.port, data, closes=True))
    assert reply.status == 400
    assert await count(database) == 0


STRANGE_BUT_ALLOWED = {
    "a length given twice alike": (POST + LENGTH + LENGTH + b"\r\n" + BODY, 303),
    "a length with leading zeros": (POST + b"Content-Length: %011d\r\n\r\n" % len(BODY) + BODY, 303),
    "chunks with extensions and trailers": (
        POST + b'Transfer-Encoding: chunked\r\n\r\n%03x;x="y"\r\n' % len(BODY) + BODY + b"\r\n0\r\nX: y\r\n\r\n",
        303,
    ),
    "bare line feeds": (b"GET /health HTTP/1.1\nHost: localhost\n\n", 200),
    "a folded header": (b"GET /health HTTP/1.1\r\n" + HOST + b"X: a\r\n b\r\n\r\n", 200),
    "a body nobody reads": (b"GET /health HTTP/1.1\r\n" + HOST + LENGTH + b"\r\n" + BODY, 200),
    "no body and no length": (POST + b"\r\n", 422),
    "a length of zero": (POST + b"Content-Length: 0\r\n\r\n", 422),
    "a promise nobody asked for": (POST + b"Expect: 100-continue\r\n" + LENGTH + b"\r\n" + BODY, 303),
    "an expectation nobody knows": (POST + b"Expect: bananas\r\n" + LENGTH + b"\r\n" + BODY, 303),
    "an id that is not text": (b"GET /health HTTP/1.1\r\n" + HOST + b"X-Request-ID: \xff\xfe\r\n\r\n", 200),
    "an odd ETag": (b"GET /api/v1/goals HTTP/1.1\r\n" + HOST + b'If-None-Match: "\xff, W/,,"", *\r\n\r\n', 200),
    "an empty ETag": (b"GET /api/v1/goals HTTP/1.1\r\n" + HOST + b"If-None-Match:\r\n\r\n", 200),
    "a range": (b"GET / HTTP/1.1\r\n" + HOST + b"Range: bytes=0-0,9999999999999-\r\n\r\n", 200),
}


@pytest.mark.parametrize(("data", "status"), STRANGE_BUT_ALLOWED.values(), ids=STRANGE_BUT_ALLOWED)
@pytest.mark.usefixtures("database")
async def test_what_http_allows_is_understood_however_strange(service: Service, data: bytes, status: int) -> None:
    check(reply := await ask(service.port, data))
    assert reply.status == status


async def test_a_client_of_the_last_century_is_served_without_a_host(service: Service) -> None:
    check(reply := await ask(service.port, b"GET /health HTTP/1.0\r\n\r\n", closes=True))
    assert (reply.status, reply.headers["connection"]) == (200, "close")


async def test_requests_sent_without_waiting_are_answered_in_their_order(service: Service) -> None:
    async with asyncio.timeout(PATIENCE), Connection(service.port) as connection:
        await connection.send(request("GET", "/health") + request("GET", "/nowhere") + form("/add_goal", ""))
        assert [(await connection.read_reply()).status for _ in range(3)] == [200, 404, 422]


UPGRADES = {
    "a websocket": [
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    ],
    "half a websocket handshake": ["Upgrade: websocket", "Connection: Upgrade"],
    "HTTP/2": ["Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"],
    "HTTP/2 alone": ["Upgrade: h2c"],
    "HTTP/2 with settings that are none": ["Upgrade: h2c", "HTTP2-Settings: ???", "Connection: Upgrade"],
    "HTTP/2 in capitals": ["UPGRADE: H2C", "CONNECTION: UPGRADE"],
    "a choice": ["Upgrade: websocket, h2c", "Connection: keep-alive, Upgrade"],
    "a choice in two lines": ["Upgrade: websocket", "Upgrade: h2c", "Connection: Upgrade"],
    "HTTP/2 by TLS": ["Upgrade: h2", "Connection: Upgrade"],
    "TLS": ["Upgrade: TLS/1.3, HTTP/1.1", "Connection: Upgrade"],
    "nothing": ["Upgrade: ", "Connection: Upgrade"],
}


@pytest.mark.parametrize("lines", UPGRADES.values(), ids=UPGRADES)
async def test_an_upgrade_is_ignored_at_both_ports(service: Service, lines: list[str]) -> None:
    """RFC 9110, 7.8; `ask` sends a second request on the connection, which is still HTTP/1.1."""
    check(reply := await ask(service.port, request("GET", "/health", *lines)))
    assert (reply.status, reply.body) == (200, b"OK")
    check(reply := await ask(service.port, request("OPTIONS", "/", *lines)))
    assert reply.status == 405
    check(reply := await ask(service.port, form("/add_goal", "goal_name=", *lines)))
    assert reply.status == 422
    ended = request("GET", "/livez", *lines, "Connection: close")
    reply = await ask(service.ops_port, ended, closes=True)
    assert (reply.status, reply.body) == (200, b"live")


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
OTHER_PROTOCOLS = {
    "the preface of HTTP/2": (PREFACE, 400),
    "the preface and its settings": (PREFACE + bytes(9), 400),
    "half the preface": (PREFACE[:18], 400),
    "CONNECT": (b"CONNECT goals.example:443 HTTP/1.1\r\nHost: goals.example:443\r\n\r\n", 501),
    "CONNECT to a path": (request("CONNECT", "/health"), 501),
    "CONNECT with a body": (request("CONNECT", "goals.example:443", body=b"a"), 501),
}


@pytest.mark.parametrize(("data", "status"), OTHER_PROTOCOLS.values(), ids=OTHER_PROTOCOLS)
async def test_another_protocol_is_refused_at_both_ports(service: Service, data: bytes, status: int) -> None:
    for port in service:
        check(reply := await ask(port, data, closes=True))
        assert (reply.status, reply.headers["connection"]) == (status, "close")


async def test_a_huge_header_or_an_odd_field_never_breaks_the_api(client: httpx2.AsyncClient) -> None:
    for headers in (
        {"if-none-match": '"' + "x" * 10_000 + '"'},
        {"if-none-match": ",".join(["W/"] * 3000)},
        {"accept": "*/*;q=" + "9" * 5000},
        {"accept-encoding": "gzip;q=nan"},
        {"x-forwarded-for": "' OR 1=1"},
        {"range": "bytes=-"},
        {"cookie": "a=" * 3000},
        {"authorization": "Basic !!!!"},
    ):
        response = await client.get("/api/v1/goals", headers=headers)
        assert (response.status_code, response.json()) == (200, {"goals": []})
