"""Private words stay out of messages and logs."""

from __future__ import annotations

from support_process import ask

from emotui.core.private import private_words, without_private
from emotui.core.protocol import FitRequest, ModelSpec


def test_private_words_go_whole_or_in_pieces_and_others_stay() -> None:
    words = private_words(ask("My sister's secret"))
    message = "KeyError: 'Ġsecret' then sist\nand SISTER, at index 12 of the table"
    cleaned = without_private(message, words)
    assert not any(word in cleaned.lower() for word in ("secret", "sist"))
    assert cleaned.startswith("KeyError") and cleaned.endswith("at index 12 of the table")


def test_where_texts_come_from_a_file_no_message_is_kept() -> None:
    fit = FitRequest(ModelSpec("m"), "cache", data="diary.jsonl")
    assert without_private("row 3: I hate you", private_words(fit)) == ""
    assert private_words(FitRequest(ModelSpec("m"), "cache")) == frozenset()


def test_a_message_stays_on_one_clean_line() -> None:
    assert "\x1b" not in without_private("bad \x1b[2J\nvalue", frozenset())
    assert "\n" not in without_private("bad \x1b[2J\nvalue", frozenset())
