"""A service of your own: which names it may have, what becomes of a text, and that nothing is left of the old one."""

import io
import re
import tokenize
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tools import new
from tools.naming import WORDS, Names, find_collisions, find_errors, plural_of
from tools.parts import OPTIONAL, PARTS, Tree, belongs, complete, prune_lock, prune_pins
from tools.pruning import MarkError, cut, prune

ORDERS = Names("orders", "order", "orders")
EVERYTHING = Tree.read(set())
IDENTITY = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("goals.goal_name of a Goal, GOALS_PORT", "orders.order_name of an Order, ORDERS_PORT"),
        ("test_a_goal_is_kept; A goal's name", "test_an_order_is_kept; An order's name"),
        ("GoalsAbsent, a\n    # goal, a `goal`", "OrdersAbsent, an\n    # order, an `order`"),
        (".DEFAULT_GOAL := help", ".DEFAULT_GOAL := help"),
    ],
)
def test_each_form_of_the_word_is_replaced_with_its_case_and_its_article(before: str, after: str) -> None:
    assert ORDERS.rename(before) == after


def test_a_service_may_be_called_otherwise_than_what_it_keeps() -> None:
    shop = Names("shop", "user", "users")
    assert shop.rename("goals: about 300 goals, each a goal") == "shop: about 300 users, each a user"


@pytest.mark.parametrize(
    ("noun", "plural"),
    [("task", "tasks"), ("box", "boxes"), ("category", "categories"), ("day", "days"), ("branch", "branches")],
)
def test_the_plural_is_the_regular_one(noun: str, plural: str) -> None:
    assert plural_of(noun) == plural


@pytest.mark.parametrize(
    ("word", "article"),
    [("event", "an"), ("hour", "an"), ("unit", "a"), ("user", "a"), ("uncle", "an"), ("euro", "a"), ("task", "a")],
)
def test_the_article_follows_the_sound(word: str, article: str) -> None:
    assert Names("x", word, "xs").rename("a goal") == f"{article} {word}"


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (Names("Orders", "order", "orders"), "NAME=Orders: lower-case letters and digits only"),
        (Names("my_orders", "order", "orders"), "NAME=my_orders: lower-case letters and digits only"),
        (Names("orders", "2nd", "orders"), "NOUN=2nd: lower-case letters and digits only"),
        (Names("orders", "order", "or ders"), "PLURAL=or ders: lower-case letters and digits only"),
        (Names("o" * 21, "order", "orders"), "at most 20 characters"),
        (Names("goals", "order", "orders"), "NAME=goals: the template already uses this word"),
        (Names("classes", "class", "classes"), "NOUN=class: a keyword of Python"),
        (Names("lists", "list", "lists"), "NOUN=list: a builtin of Python"),
        (Names("calendar", "day", "days"), "NAME=calendar: a module of Python's standard library"),
        (Names("order", "item", "items"), "NAME=order: a keyword of PostgreSQL"),
        (Names("gateway", "item", "items"), "NAME=gateway: the project already uses this name"),
        (Names("starlette", "item", "items"), "NAME=starlette: a dependency has this name"),
        (Names("yaml", "item", "items"), "NAME=yaml: a dependency has this name"),
        (Names("sheep", "sheep", "sheep"), "NOUN=sheep: singular and plural must differ"),
    ],
)
def test_a_name_that_cannot_be_is_refused_in_a_line(names: Names, reason: str) -> None:
    assert any(reason in error for error in find_errors(names, EVERYTHING.sources))


def test_each_folder_and_each_service_of_compose_is_a_name_that_is_taken() -> None:
    taken = tomllib.loads((ROOT / "tools/new.toml").read_text(encoding="utf-8"))["words"]["names"]
    folders = {path.partition("/")[0] for path in EVERYTHING.sources if "/" in path and not path.startswith(".")}
    services = set(
        re.findall(r"^  ([a-z]+):$", EVERYTHING.sources["compose.yaml"].partition("\nservices:")[2], re.MULTILINE)
    ) - {"goals"}
    assert (folders | services) - set(taken) == set()


@pytest.mark.parametrize("noun", ["order", "task", "habit", "ticket", "note", "event", "person", "appointment"])
def test_a_usual_noun_collides_with_nothing(noun: str) -> None:
    names = Names(plural_of(noun), noun, plural_of(noun))
    assert [*find_errors(names, EVERYTHING.sources), *find_collisions(names, EVERYTHING.texts)] == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("a.py", "def draw(page: int) -> None:\n    for goal in range(page):\n        print(goal)\n"),
        ("a.py", "page = 1\n\n\ndef draw() -> None:\n    goal = 2\n    print(page, goal)\n"),
        ("a.py", "import page\n\n\nclass goal:\n    pass\n"),
        ("a.py", "try:\n    goal = 1\nexcept OSError as page:\n    raise\n"),
        ("a.py", "draw(goal=1, page=2)\n"),
        ("a.html", "{% for goal in page.goals %}{{ goal }}{% endfor %}"),
        ("a.sh", 'GOAL=1; echo "$PAGE"'),
    ],
)
def test_a_word_that_would_mean_two_things_is_refused_with_its_place(path: str, text: str) -> None:
    (collision,) = find_collisions(Names("pages", "page", "pages"), {path: text, "a.md": "goal, page"})
    word = "PAGE" if path == "a.sh" else "page"
    assert collision == f"NAME=pages NOUN=page: {word} would have two meanings in {path}: choose other words"


def test_two_files_of_one_name_are_refused() -> None:
    files = {"templates/goal.html": "", "templates/error.html": ""}
    (collision,) = find_collisions(Names("errors", "error", "errors"), files)
    assert collision == "NAME=errors NOUN=error: the file templates/error.html already exists: choose other words"


def test_a_variable_of_another_function_is_no_collision() -> None:
    text = "def one(page: int) -> int:\n    return page\n\n\ndef other(goal: int) -> int:\n    return goal\n"
    assert [*find_collisions(Names("pages", "page", "pages"), {"a.py": text})] == []


MARKED = "one\n# part k8s\ntwo\n  <!-- part azure -->\nthree\n  <!-- end azure -->\n# end k8s\nfour\n"


@pytest.mark.parametrize(
    ("left_out", "left"),
    [
        (set[str](), "one\ntwo\nthree\nfour\n"),
        ({"azure"}, "one\ntwo\nfour\n"),
        ({"k8s"}, "one\nfour\n"),
    ],
)
def test_marked_lines_go_with_their_part_and_the_marks_always(left_out: set[str], left: str) -> None:
    assert cut(MARKED, left_out) == left


@pytest.mark.parametrize("text", ["# part k8s\n", "# end k8s\n", "# part k8s\n# end azure\n"])
def test_a_mark_without_its_other_half_is_an_error(text: str) -> None:
    with pytest.raises(MarkError):
        cut(text, set())


DOCUMENT = """# Title

One sentence stays. One about kubes goes; the
last stays.

| a | b |
|---|---|
| kubes | 1 |
| paper | 2, 3 |
| proof | `kubes`, `wood` |

| only | kubes |
|---|---|
| kubes | 1 |

| who | kubes port | port |
|---|---|---|
| kubes/a, paper/b, outside | 1 | 2 \\| 3 |

These commands do it:

```sh
kubes up \\
  --now
```

```sh
kubes up
make up
```

1. First.
2. By kubes.
3. Third, which goes on
   in a second line. By kubes.

- **Kubes** alone. Kubes.
- **Bold.** A kubes sentence.
- **A lead about it.** It goes on without.

![kubes](kubes.svg)

## A section about kubes

It is kubes.

### And below it

Kubes.

## Another

Text. **A kubes sentence.** More.
"""
PRUNED = """# Title

One sentence stays.

| a | b |
|---|---|
| paper | 2, 3 |
| proof | `wood` |

| who | port |
|---|---|
| paper/b, outside | 2 \\| 3 |

```sh
make up
```

1. First.
2. Third, which goes on in a second line.

- **A lead about it.** It goes on without.

## Another

Text. More.
"""


def test_a_document_keeps_what_is_about_something_else() -> None:
    assert prune(DOCUMENT, lambda text: "kubes" in text.lower()) == PRUNED
    assert prune(DOCUMENT, lambda _: False) == DOCUMENT


@pytest.mark.parametrize("name", sorted(PARTS))
def test_each_word_of_a_part_is_still_in_a_document(name: str) -> None:
    prose = [" ".join(text.split()) for path, text in EVERYTHING.sources.items() if path.endswith(".md")]
    assert [word for word in PARTS[name].get("words", []) if not any(re.search(word, text) for text in prose)] == []


def test_what_is_read_as_a_plural_is_prose_and_never_a_name_in_code() -> None:
    """A variable would otherwise get the noun's plural in one line and the service's name in the next."""
    for path, text in EVERYTHING.sources.items():
        if path.endswith(".py"):
            lines = [list(line) for line in text.splitlines()]
            for token in tokenize.generate_tokens(io.StringIO(text).readline):
                if token.type in {tokenize.STRING, tokenize.COMMENT}:
                    for row in range(token.start[0], token.end[0] + 1):
                        start = token.start[1] if row == token.start[0] else 0
                        end = token.end[1] if row == token.end[0] else len(lines[row - 1])
                        lines[row - 1][start:end] = "\0" * (end - start)
            code = "\n".join("".join(line) for line in lines)
            found = [match[0] for pattern in WORDS["plural"] for match in re.finditer(pattern, code)]
            assert found == [], path


def test_a_list_that_goes_on_after_a_block_keeps_its_numbers() -> None:
    document = "1. One.\n2. Two.\n\n```sh\nmake up\n```\n\n3. By kubes.\n4. Four.\n"
    assert prune(document, lambda text: "kubes" in text) == document.replace("3. By kubes.\n4.", "3.")


def test_a_lock_keeps_what_somebody_that_stays_asks_for() -> None:
    lock = """# made
one==1 \\
    --hash=sha256:aa
    # via goals (pyproject.toml:dev)
two==1 \\
    --hash=sha256:bb
    # via
    #   goals (pyproject.toml:dev)
    #   three
three==1 \\
    --hash=sha256:cc
    # via goals (pyproject.toml:dev)
four==1 \\
    --hash=sha256:dd
    # via
    #   -c requirements/local.txt
    #   three
"""
    kept = prune_lock(lock, {"one", "two"})
    assert re.findall(r"^(\w+)==", kept, re.MULTILINE) == ["one", "two"]
    assert "three" not in kept
    assert prune_lock(lock, {"one", "two", "three"}) == lock


def test_a_pin_keeps_the_places_that_are_there() -> None:
    pins = """head

[[pin]]
name = "a"
version = "1"
places = ["here: a:{version}", "gone: a:{version}"]
held = "it is"

[[pin]]
name = "b"
version = "1"
places = ["gone: b:{version}"]

[[pin]]
name = "c"
version = "1"
places = ["here: a:{version}"]
"""
    kept = prune_pins(pins, {"here": "a:1"})
    assert [(pin["name"], pin["places"]) for pin in tomllib.loads(kept.removeprefix("head"))["pin"]] == [
        ("a", ["here: a:{version}"]),
        ("c", ["here: a:{version}"]),
    ]
    assert 'held = "it is"' in kept


def test_a_part_goes_with_what_it_needs() -> None:
    assert complete({"k8s"}) == {"k8s", "azure", "argocd"}
    assert complete({"azure"}) == {"azure", "argocd"}
    assert complete({"loadtest"}) == {"loadtest", "drills"}
    assert complete({"argocd"}) == {"argocd"}
    assert complete(set()) == set()


@pytest.mark.parametrize(
    ("part", "words", "kept"),
    [
        ("argocd", r"argo", {"k8s/overlays/aks/kustomization.yaml", "drills/__init__.py"}),
        ("azure", r"\bAKS\b|azure|overlays/aks|barman", {"k8s/overlays/local/kustomization.yaml"}),
        ("loadtest", r"load.?test|locust|cluster-test", {"k8s/overlays/aks/kustomization.yaml"}),
    ],
)
def test_a_part_of_k8s_goes_alone_and_nothing_speaks_of_it(part: str, words: str, kept: set[str]) -> None:
    texts = Tree.read(complete({part, *OPTIONAL})).texts
    assert kept <= texts.keys()
    speaking = {path for path, text in texts.items() if re.search(words, text, re.IGNORECASE)}
    assert {path for path in speaking if not path.startswith(("docs/adr/", "requirements/"))} == set()


@pytest.mark.parametrize("name", PARTS)
def test_everything_that_is_said_of_a_part_is_still_there(name: str) -> None:
    part = PARTS[name]
    for path in part["paths"]:
        assert any(belongs(each, path) for each in EVERYTHING.modes), path
    for path, old, _ in part.get("instead", []):
        assert old in EVERYTHING.sources[path], f"{path}: {old}"
    for path, word in part.get("lines", []):
        assert word in EVERYTHING.sources[path], f"{path}: {word}"
    assert set(part.get("needs", [])) <= PARTS.keys()


@pytest.mark.parametrize(
    ("arguments", "errors"),
    [
        (["--name", "orders"], ["error: name the service and its items: make new NAME=orders NOUN=order"]),
        (
            ["--name", "1", "--noun", "class", "--without", "sink", "--with", "k8s", "--dir", str(ROOT / "orders")],
            ["WITHOUT=sink", "WITH=k8s", "NAME=1: ", "NOUN=class: ", "DIR="],
        ),
        (
            ["--name", "listings", "--noun", "listing"],
            ["NOUN=listing: Listing would have two meanings in services/goals/models.py and "],
        ),
    ],
)
def test_what_cannot_be_made_is_refused_with_a_line_for_each_error(
    arguments: list[str], errors: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in IDENTITY.items():
        monkeypatch.setenv(variable, value)
    assert new.main(arguments) == 1
    said = capsys.readouterr().err
    assert all(error in said for error in errors)
    assert all(line.startswith("error: ") for line in said.splitlines())


def test_a_stranger_to_git_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    monkeypatch.setattr(new, "ROOT", tmp_path)
    assert any("git has no identity" in line for line in new.find_obstacles(tmp_path.parent / "x"))
    assert {"adoption"} == OPTIONAL
