"""Every emotui command line in README and docs parses: copied, it is not refused for its words."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from emotui import cli

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:[A-Z_]+=\S+ )*emotui(?: [^`]*)?)`")
_ALTERNATIVE = re.compile(r" \| [a-z]+")


def _lines(text: str) -> list[str]:
    found = [
        line.strip()
        for block in _BLOCK.findall(text)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    # Options at the end of a comment are part of what is shown to be copied.
    shown = [
        f"{line.split('#')[0]} {line.split('#')[1].strip()}"
        for line in found
        if line.startswith("emotui study") and line.partition("#")[2].strip().startswith("--set")
    ]
    inline = [match for match in _INLINE.findall(_BLOCK.sub("", text)) if "..." not in match[-4:]]
    return [line for line in (*found, *shown, *inline) if line.startswith("emotui ")]


def _commands() -> list[tuple[str, str]]:
    """Return the file and the words of each command; of a synopsis one of those it stands for."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [(file.name, line) for file in files for line in _lines(file.read_text("utf-8"))]


def _words(line: str) -> list[str]:
    plain = _ALTERNATIVE.sub("", line.replace("[", "").replace("]", ""))
    words = shlex.split(plain.split("      ")[0], comments=True)[1:]
    for end in (">", "|"):
        words = words[: words.index(end)] if end in words else words
    return ["1" if word == "N" else word for word in words if word != "..."]


@cache
def _program() -> Any:
    cli._add_groups()
    return typer.main.get_command(cli.app)


def _parse(words: list[str]) -> None:
    """Parse as the program does, without running it: raises what the parser raises."""
    context: Any = None
    command = _program()
    name, rest = "emotui", cli.with_command(words)
    while rest or not hasattr(command, "commands"):  # a group's name alone is no command
        context = command.make_context(name, rest, parent=context)
        if not hasattr(command, "commands"):
            return
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)


def test_the_documents_have_commands() -> None:
    assert len(_commands()) > 60
    assert {"README.md", "compare.md", "features.md", "studies.md"} <= {f for f, _ in _commands()}


@pytest.mark.parametrize(("file", "line"), _commands())
def test_a_documented_command_parses(file: str, line: str) -> None:
    _parse(_words(line))


@pytest.mark.parametrize(
    "line",
    [
        "emotui study patch DATA --set pairs=100 correct=no",
        "emotui inspect TEXT --no-such-option",
        "emotui cache vanish",
    ],
)
def test_what_does_not_parse_is_noticed(line: str) -> None:
    with pytest.raises(Exception, match=r"unexpected extra|[Nn]o such"):
        _parse(_words(line))
