"""The names of a new service: their forms, their places in a text, and the ones that its code cannot use."""

import ast
import builtins
import importlib.metadata
import keyword
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from tools import ROOT

WORDS = tomllib.loads((ROOT / "tools/new.toml").read_text(encoding="utf-8"))["words"]
OURS = ("goals", "goal")
LONGEST = 20
"""Maximum length of a name: names that are derived from it may have 63 characters in Kubernetes and PostgreSQL."""


@dataclass(frozen=True)
class Names:
    """The name of the new service, the noun for what it stores, and the plural of that noun."""

    name: str
    noun: str
    plural: str

    def rename(self, text: str) -> str:
        """Replace our words with the new ones, each in the same case and with the right article."""
        for number, phrase in enumerate(WORDS["kept"]):
            text = text.replace(phrase, f"\0{number}\0")

        def with_article(found: re.Match[str]) -> str:
            article = "an" if takes_an(self.name if found[3] else self.noun) else "a"
            return (article.capitalize() if found[1] == "A" else article) + found[2]

        text = re.sub(
            r"(?<![A-Za-z])([Aa])n?(_|-|\s+(?:(?:#|>|\*|//) +)?)(?=[`\"“'*]?(?i:goal(s)?))", with_article, text
        )
        for pattern in WORDS["plural"]:
            text = re.sub(pattern, lambda found: _replace(found[0], "goals", self.plural), text)
        text = _replace(_replace(text, "goals", self.name), "goal", self.noun)
        for number, phrase in enumerate(WORDS["kept"]):
            text = text.replace(f"\0{number}\0", phrase)
        return text


def _replace(text: str, old: str, new: str) -> str:
    """Replace a word in each of its cases: goals, Goals, GOALS."""

    def in_its_case(found: re.Match[str]) -> str:
        if found[0].isupper():
            return new.upper()
        return new if found[0].islower() else new.capitalize()

    return re.sub(old, in_its_case, text, flags=re.IGNORECASE)


def takes_an(word: str) -> bool:
    """Return whether English uses "an" before a word: the sound decides, which the spelling usually shows."""
    silent = re.match(r"hour|honou?r|heir", word)
    hard = re.match(r"eu|one|u(?:ni(?!n|m)|s[aeu]|ti|r[aei])", word)
    return bool(silent or (word[0] in "aeiou" and not hard))


def plural_of(noun: str) -> str:
    """Return the regular plural of an English noun."""
    if re.search(r"(s|x|z|ch|sh)$", noun):
        return f"{noun}es"
    return re.sub(r"(?<=[^aeiou])y$", "ie", noun) + "s"


def find_errors(names: Names, sources: Mapping[str, str]) -> Iterator[str]:
    """Yield one line for each reason why a copy of these sources cannot use these names."""
    spelt = {"NAME": names.name, "NOUN": names.noun, "PLURAL": names.plural}
    for option, word in spelt.items():
        if (reason := _bad_spelling(word)) or (option != "PLURAL" and (reason := _taken(word))):
            yield f"{option}={word}: {reason}"
    if names.name in sys.stdlib_module_names:
        yield f"NAME={names.name}: a module of Python's standard library"
    if names.noun in {names.name, names.plural}:
        yield f"NOUN={names.noun}: singular and plural must differ: choose another NAME or PLURAL"
    if names.name in WORDS["reserved"]:
        yield f"NAME={names.name}: a keyword of PostgreSQL, which would have to be quoted as a table name"
    if names.name in WORDS["names"]:
        yield f"NAME={names.name}: the project already uses this name for something else"
    if names.name in _dependencies(sources):
        yield f"NAME={names.name}: a dependency has this name"


def find_collisions(names: Names, sources: Mapping[str, str]) -> Iterator[str]:
    """Yield one line for each renamed word that would collide with an existing one."""
    rename = cache(names.rename)
    for path in sources:
        if rename(path) in sources.keys() - {path}:
            yield f"NAME={names.name} NOUN={names.noun}: the file {rename(path)} already exists: choose other words"
    clashes: dict[str, set[str]] = {}
    for path, text in sources.items():
        for renamed, known in _scopes(path, text):
            if found := {rename(name) for name in renamed} & known:
                clashes.setdefault(path, set()).update(found)
    if clashes:
        words = ", ".join(sorted(set().union(*clashes.values())))
        where = f"{next(iter(clashes))}" + (f" and {len(clashes) - 1} more" if len(clashes) > 1 else "")
        yield f"NAME={names.name} NOUN={names.noun}: {words} would have two meanings in {where}: choose other words"


def _bad_spelling(word: str) -> str | None:
    if not re.fullmatch(r"[a-z][a-z0-9]*", word):
        return "lower-case letters and digits only, starting with a letter: it becomes a Python name and a DNS label"
    if len(word) > LONGEST:
        return f"at most {LONGEST} characters, because names in Kubernetes and PostgreSQL are derived from it"
    if word in OURS or any(ours in word for ours in OURS):
        return "the template already uses this word"
    return None


def _taken(word: str) -> str | None:
    if keyword.iskeyword(word) or keyword.issoftkeyword(word):
        return "a keyword of Python"
    if word in dir(builtins):
        return "a builtin of Python"
    return None


def _dependencies(sources: Mapping[str, str]) -> set[str]:
    """Return the names of the locked packages, and the names by which they are imported."""
    locked = "".join(text for path, text in sources.items() if re.fullmatch(r"requirements/\w+\.txt", path))
    names = {re.sub("[-.]", "_", name.lower()) for name in re.findall(r"(?m)^([\w.-]+)==", locked)}
    return names | importlib.metadata.packages_distributions().keys()


@cache
def _scopes(path: str, text: str) -> list[tuple[frozenset[str], frozenset[str]]]:
    """Return the scopes in which names must stay distinct: for each, the names that we rename and the others."""
    if path.endswith(".py"):
        places = _python_scopes(text)
    elif path.endswith(".html"):
        names = {name for piece in re.findall(r"{[{%].*?[%}]}", text) for name in re.findall(r"[a-z_]+", piece)}
        places = [(names, names)]
    elif path.endswith((".md", ".txt", ".svg", ".json", ".patch")):
        places = []
    else:
        # Variables of the environment, of make and of the shell.
        names = set(re.findall(r"[A-Z][A-Z0-9_]{2,}", text))
        places = [(names, names)]
    split = [
        (frozenset(filter(_is_ours, one)), frozenset(each for each in two if not _is_ours(each))) for one, two in places
    ]
    return [(renamed, known) for renamed, known in split if renamed and known]


def _python_scopes(text: str) -> list[tuple[set[str], set[str]]]:
    """Return the scopes of a module: itself, each top-level function or class, and the keywords of each call."""
    tree = ast.parse(text)
    shared = _names(tree, deep=False)
    inside = [_names(node, deep=True) for node in tree.body]
    calls = [{each.arg for each in node.keywords if each.arg} for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [(shared, shared), *((names, names | shared) for names in inside), *((names, names) for names in calls)]


def _is_ours(name: str) -> bool:
    return "goal" in name.lower()


def _names(node: ast.AST, *, deep: bool) -> set[str]:
    """Return the names of variables, parameters, functions, classes and imports in a piece of code."""
    found: set[str] = set()
    todo: list[ast.AST] = list(ast.iter_child_nodes(node)) if isinstance(node, ast.Module) else [node]
    while todo:
        each = todo.pop()
        match each:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.ExceptHandler(name=str(name)):
                found.add(name)
            case ast.alias(name=name, asname=alias):
                found.add(alias or name.partition(".")[0])
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
                if not deep:
                    continue
        todo += ast.iter_child_nodes(each)
    return found
