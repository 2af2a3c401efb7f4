"""What a check accepts, and what is no check."""

import pytest

from loadtest.checks import parse_check


class Answer:
    """An answer of the tests' own making."""

    def __init__(self, status: int = 200, content: bytes = b"OK", **headers: str) -> None:
        self.status = status
        self.content = content
        self._headers = headers

    def header(self, name: str) -> str | None:
        return self._headers.get(name.replace("-", "_"))


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        ("status == 200", Answer(200), Answer(0)),
        ("status != 500", Answer(200), Answer(500)),
        ("status < 400", Answer(399), Answer(400)),
        ("status <= 400", Answer(400), Answer(401)),
        ("status > 299", Answer(300), Answer(299)),
        ("status >= 300", Answer(300), Answer(299)),
        ("status in [200, 304]", Answer(304), Answer(303)),
        ("status in [204]", Answer(204), Answer(20)),
        ('body == "OK"', Answer(content=b"OK"), Answer(content=b"OK!")),
        ('body == ""', Answer(content=b""), Answer(content=b" ")),
        ('body contains "zß"', Answer(content="a zß".encode()), Answer(content=b"z")),
        ("body contains 'say \"hi\"'", Answer(content=b'I say "hi"'), Answer(content=b"I say hi")),
        ('header content-type == "text/html"', Answer(content_type="text/html"), Answer(content_type="text/plain")),
        ('header content-type contains "html"', Answer(content_type="text/html"), Answer()),
        ("header etag == '\"a\"'", Answer(etag='"a"'), Answer(etag="a")),
    ],
)
def test_a_check_tells_good_from_bad(text: str, good: Answer, bad: Answer) -> None:
    check = parse_check(text)
    assert check(good)
    assert not check(bad)


@pytest.mark.parametrize(
    "text", ["", "status", "status = 200", "status == OK", "status in []", "body", "body == OK", "header == 'a'", "x()"]
)
def test_everything_else_is_refused_with_the_forms_there_are(text: str) -> None:
    with pytest.raises(ValueError, match="is not a check; write one of"):
        parse_check(text)
