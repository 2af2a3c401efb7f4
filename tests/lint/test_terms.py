"""The check of words finds each word that docs/terms.md rules out, and nothing else."""

import pytest

from tests.prose import prose
from tools.terms import PAGE, Term, find, read_terms

TEXT = PAGE.read_text(encoding="utf-8")
TERMS = read_terms(TEXT)


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.word)
def test_every_word_that_is_ruled_out_is_found(term: Term) -> None:
    text = f"if {term.word}:\n    pass\n" if term.is_name else f"# Nothing\n# is {term.word.capitalize()}.\n"
    (finding,) = [one for one in find(text, TERMS, is_python=True) if f"`{term.word}`" in one]
    assert finding == f"{1 if term.is_name else 2}: `{term.word}`: write {term.instead}"


@pytest.mark.parametrize("text", ["# patient\n", "littles_law_ratio = seed\n", "retold = anewer\n", '"--seed"\n'])
def test_a_word_that_is_right_elsewhere_is_left_alone(text: str) -> None:
    assert list(find(text, TERMS, is_python=True)) == []


@pytest.mark.parametrize("break_", [" ", "\n", "\n    # ", "\n> "])
def test_a_phrase_is_found_across_lines(break_: str) -> None:
    (finding,) = find(f"It was held{break_}against it.", TERMS, is_python=False)
    assert finding.startswith("1: ")


@prose
def test_the_page_fits_on_a_screen() -> None:
    assert TEXT.count("\n") <= 60
