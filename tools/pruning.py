"""Remove parts from a text: the lines that are marked as theirs, and the sentences about them."""

import re
import textwrap
from collections.abc import Callable

MARK = re.compile(r"^\s*(?:#|//|--|%%|<!--)\s*(part|end) ([a-z0-9]+)\s*(?:-->)?\s*$")
WIDTH = 150
"""Line width, in characters, of changed prose."""
Gone = Callable[[str], bool]
"""Returns whether a piece of a document is about something that was removed."""


class MarkError(Exception):
    """A mark without a counterpart."""


def cut(text: str, left_out: set[str], path: str = "") -> str:
    """Drop the lines between the marks of a part that is left out, and the marks themselves.

    The comment `part k8s` on its own line begins the part, and `end k8s` ends it; parts may be nested.
    """
    kept: list[str] = []
    within: list[str] = []
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if found := MARK.match(line):
            if found[1] == "part":
                within.append(found[2])
            elif not within or within.pop() != found[2]:
                raise MarkError(f"{path}, line {number}: {line.strip()} has no matching start")
        elif not left_out & set(within):
            kept.append(line)
    if within:
        raise MarkError(f"{path}: part {within[-1]} has no end")
    return "".join(kept)


def prune(text: str, gone: Gone) -> str:
    """Drop each row, command and sentence about something that is gone, and the headings of empty sections."""
    blocks = [_prune_block(block, gone) for block in _split(text)]
    for number, block in enumerate(blocks):
        # Also drop the sentence that introduces a dropped list, table or command.
        if block == "" and number and blocks[number - 1].endswith(":"):
            blocks[number - 1] = _without_last_sentence(blocks[number - 1])
    return "\n\n".join(_without_empty_sections([block for block in blocks if block])) + "\n"


def _split(text: str) -> list[str]:
    """Return the blocks of a document, which blank lines separate; a fence is one block."""
    blocks: list[str] = []
    block: list[str] = []
    fence = False
    for line in [*text.splitlines(), ""]:
        if line.lstrip().startswith("```"):
            fence = not fence
        if line.strip() or fence:
            block.append(line)
        elif block:
            blocks.append("\n".join(block))
            block = []
    return blocks


def _prune_block(block: str, gone: Gone) -> str:
    lines = block.split("\n")
    if lines[0].startswith("#"):
        rest = "\n".join(lines[1:])
        return "\n".join(filter(None, [lines[0], _prune_block(rest, gone) if rest else ""]))
    if "```" in block and lines[0].lstrip().startswith("```"):
        return _prune_fence(lines, gone)
    if lines[0].startswith("|"):
        lines = _prune_columns(lines, gone)
        rows = [row for line in lines[2:] if (row := _prune_row(line, gone))]
        return "\n".join([*lines[:2], *rows]) if rows else ""
    if lines[0].startswith("!["):
        return "" if gone(block) else block
    if re.match(r"([-*]|\d+\.) ", lines[0]):
        return _prune_list(lines, gone)
    return _prune_prose(block, gone)


def _prune_fence(lines: list[str], gone: Gone) -> str:
    inside = "\n".join(lines[1:-1])
    commands = re.split(r"(?<!\\)\n", inside)
    kept = [command for command in commands if not gone(command)]
    if not any(command.strip() and not command.lstrip().startswith("#") for command in kept) and kept != commands:
        return ""
    return "\n".join([lines[0], *kept, lines[-1]])


def _prune_columns(lines: list[str], gone: Gone) -> list[str]:
    """Return the table without the columns of removed parts; nothing if no other column is left."""
    table = [re.split(r"(?<!\\)\|", line.strip()[1:-1]) for line in lines]
    kept = [number for number, head in enumerate(table[0]) if not number or not gone(head)]
    return [f"|{'|'.join(row[number] for number in kept)}|" for row in table] if kept[1:] else []


def _prune_row(row: str, gone: Gone) -> str:
    cells = row.strip().strip("|").split(" | ")
    for number, cell in enumerate(cells):
        entries = cell.strip().split(", ")
        if len(entries) > 1 and all(re.match(r"[`\[]|[\w-]+/|outside$", entry) for entry in entries):
            left = [entry for entry in entries if not gone(entry)]
            if left:
                cells[number] = cell.replace(cell.strip(), ", ".join(left))
    row = "|" + " | ".join(cells) + "|"
    return "" if gone(row) else row


def _prune_list(lines: list[str], gone: Gone) -> str:
    items: list[list[str]] = []
    for line in lines:
        if re.match(r"([-*]|\d+\.) ", line):
            items.append([line])
        else:
            items[-1].append(line)
    kept: list[str] = []
    first = re.match(r"\d+", items[0][0])
    for item in items:
        lead, _, text = "\n".join(item).partition(" ")
        pruned = _prune_prose(text, gone, indent=" " * (len(lead) + 1))
        if pruned:
            kept.append(f"{int(first[0]) + len(kept)}. {pruned}" if first else f"{lead} {pruned}")
    return "\n".join(kept)


def _prune_prose(text: str, gone: Gone, indent: str = "") -> str:
    if not gone(text):
        return text
    sentences = _sentences(text)
    kept = [sentence for sentence in sentences if not gone(sentence)]
    # A bold lead without the text that follows it is dropped too.
    if not kept or all(re.fullmatch(r"\*\*[^*]+\*\*", sentence) for sentence in kept):
        return ""
    lead = re.match(r"\*\*[^*]+\*\* ", sentences[0])
    if lead and sentences[0] not in kept:
        kept[0] = lead[0] + kept[0]
    return textwrap.fill(
        " ".join(kept), WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _sentences(text: str) -> list[str]:
    """Return the sentences of a piece of prose, each on one line."""
    line = re.sub(r"\s+", " ", text)
    # A full stop within code or a link does not end a sentence.
    hidden = re.sub(r"`[^`]*`|\]\([^)]*\)", lambda found: "x" * len(found[0]), line)
    ends = [found.end() for found in re.finditer(r"(?<=[.!?])(?:\*\*|[)\"”])?\s+(?=[A-Z`\[*(“\"x])", hidden)]
    return [line[start:end].strip() for start, end in zip([0, *ends], [*ends, len(line)], strict=True)]


def _without_last_sentence(text: str) -> str:
    return " ".join(_sentences(text)[:-1])


def _without_empty_sections(blocks: list[str]) -> list[str]:
    """Return the blocks without the headings of empty sections."""
    kept: list[str] = []
    for block in reversed(blocks):
        level = _level(block)
        if level > 1 and "\n" not in block:
            following = _level(kept[-1]) if kept else 1
            if following and following <= level:
                continue
        kept.append(block)
    return kept[::-1]


def _level(block: str) -> int:
    """Return the level of a heading, and 0 for any other block."""
    found = re.match(r"(#+) ", block)
    return len(found[1]) if found else 0
