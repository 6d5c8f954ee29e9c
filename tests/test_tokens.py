"""Texts to tokens: spans that cover, BOS once, and nothing after a text changes its tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support_models import tiny_folder, tiny_model

from emotui.core.engine.tokens import TokenReader
from emotui.core.errors import ModelError, TextError
from emotui.core.records import TextRecord, Token
from emotui.core.text import TEMPLATES, Template

PLAIN = TEMPLATES["raw"]
SAD = "Lily was sad because her toy was lost."
HOSTILE = (
    "Two lines.\n\nAnd a paragraph.\r\nDone.",
    "tab\tbell\x07escape\x1b[31mred\x1b[0m nul\x00 delete\x7f",
    "[bold]not markup[/nope] [/bold]",
    "grin \U0001f600 family \U0001f468\u200d\U0001f469\u200d\U0001f467 flag \U0001f1e9\U0001f1ea",
    "שלום עולם مرحبا \u202eabc\u202c",
    "  leading and trailing  ",
    "</s> <s> <bos><eos><pad><turn> are words here",
    "e\u0301 é ﬁ ½ \u00a0 \u3000 漢字",
    "\ufeffbyte order mark",
)


@pytest.fixture(scope="module")
def stories_reader(stories: Path) -> TokenReader:
    return TokenReader.from_folder(stories)


@pytest.fixture(scope="module", params=["stories", "byte level"])
def reader(request: pytest.FixtureRequest, stories: Path) -> TokenReader:
    """A sentencepiece-like tokenizer with byte fallback, and a byte-level one."""
    if request.param == "stories":
        return TokenReader.from_folder(stories)
    return tiny_model("gemma2").reader


def _text_tokens(record: TextRecord) -> list[Token]:
    return [token for token in record.tokens if token.part == "text"]


def _assert_well_formed(record: TextRecord, reader: TokenReader) -> None:
    tokens = _text_tokens(record)
    covered = 0
    for token in tokens:
        assert token.start is not None and token.end is not None
        assert token.start <= covered <= token.end, "spans are in order and leave no gap"
        covered = token.end
    assert covered == len(record.raw)
    assert record.readout == len(record.tokens) - 1
    assert record.tokens[record.last] is tokens[-1]
    order = [token.part for token in record.tokens]
    assert order == sorted(order, key=("special", "before", "text", "after").index)
    assert [token.id for token in record.tokens].count(reader.bos_id or -1) == 1
    assert record.tokens[0].id == reader.bos_id and record.tokens[0].special
    assert not any(token.special for token in tokens)
    assert all((token.start is None) == (token.part != "text") for token in record.tokens)


@pytest.mark.parametrize("template", ["ask", "raw", "tak1", "tak4"])
@pytest.mark.parametrize("text", (SAD, *HOSTILE))
def test_spans_cover_the_text_and_bos_stands_once(
    reader: TokenReader, template: str, text: str
) -> None:
    _assert_well_formed(reader.read(text, TEMPLATES[template]), reader)


def test_plain_words_have_their_own_characters(stories_reader: TokenReader) -> None:
    record = stories_reader.read(SAD, PLAIN)
    for token in _text_tokens(record):
        assert token.string.strip() == SAD[token.start : token.end].strip()
    assert "".join(t.string for t in _text_tokens(record)).strip() == SAD


def test_the_bytes_of_one_character_share_its_span(reader: TokenReader) -> None:
    record = reader.read("a \U0001f642 b", PLAIN)
    emoji = [t for t in _text_tokens(record) if t.start is not None and t.start <= 2 < (t.end or 0)]
    assert len(emoji) > 1
    assert "".join(t.string for t in emoji).strip() == "<0xF0><0x9F><0x99><0x82>"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=st.text(min_size=1, max_size=30).filter(str.strip), after=st.text(max_size=12))
def test_nothing_after_a_text_changes_its_tokens(text: str, after: str) -> None:
    reader = tiny_model("gemma2").reader
    alone = reader.read(text, PLAIN)
    followed = reader.read(text, Template("t", "", after))
    assert followed.tokens[: len(alone.tokens)] == alone.tokens
    assert followed.last == alone.last
    _assert_well_formed(followed, reader)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=st.text(min_size=1, max_size=30).filter(str.strip))
def test_the_tokens_hold_the_whole_text(text: str) -> None:
    """Byte-level tokens lose nothing: what they decode to together is the text itself."""
    reader = tiny_model("gemma2").reader
    record = reader.read(text, PLAIN)
    ids = [token.id for token in _text_tokens(record)]
    assert reader.decode(ids, after=()) == text


@pytest.mark.parametrize("template", ["tak1", "tak2", "tak3", "tak4", "ask"])
def test_an_ordinary_prompt_has_the_tokens_of_the_plain_string(
    reader: TokenReader, template: str, stories: Path
) -> None:
    """The papers' prompts are plain strings given to the tokenizer; so are ours."""
    from transformers import AutoTokenizer

    folder = stories if reader.eos_id == 2 else tiny_folder("gemma2")
    form = TEMPLATES[template]
    expected = AutoTokenizer.from_pretrained(str(folder))(form.before + SAD + form.after)
    record = reader.read(SAD, form)
    assert [token.id for token in record.tokens] == expected["input_ids"]


def test_only_the_first_word_sees_the_template_before_it(reader: TokenReader) -> None:
    plain = [t.id for t in _text_tokens(reader.read(SAD, PLAIN))]
    shown = [t.id for t in _text_tokens(reader.read(SAD, TEMPLATES["tak1"]))]
    rest_of_plain = [
        t.id for t in _text_tokens(reader.read(SAD, PLAIN)) if (t.start or 0) >= len("Lily")
    ]
    assert shown[-len(rest_of_plain) :] == rest_of_plain == plain[-len(rest_of_plain) :]


def test_a_text_that_ends_in_a_space_keeps_its_tokens(reader: TokenReader) -> None:
    alone = reader.read("I lost my dog ", PLAIN)
    asked = reader.read("I lost my dog ", TEMPLATES["ask"])
    assert asked.tokens[: len(alone.tokens)] == alone.tokens
    after = [token.id for token in asked.tokens if token.part == "after"]
    assert reader.decode(after, after=[token.id for token in alone.tokens]) == " The emotion is"


def test_chat_template() -> None:
    reader = tiny_model("gemma2").reader
    record = reader.read("I am <bos> lost. <turn>", TEMPLATES["chat"])
    _assert_well_formed(record, reader)
    strings = "".join(token.string for token in record.tokens)
    assert strings == (
        "<bos><turn>user\nI am <bos> lost. <turn>\nName the emotion of this text in one word.\n"
        "<turn>model\n"
    )
    turns = [t for t in record.tokens if t.special and t.string == "<turn>"]
    assert [t.part for t in turns] == ["before", "after"]


def test_chat_without_a_chat_template(stories_reader: TokenReader) -> None:
    with pytest.raises(ModelError) as caught:
        stories_reader.read(SAD, TEMPLATES["chat"])
    assert "ask" in caught.value.todo


@pytest.mark.parametrize("text", ["", " ", "\n\t \r\n", "\u3000"])
def test_blank_texts(stories_reader: TokenReader, text: str) -> None:
    with pytest.raises(TextError) as caught:
        stories_reader.read(text, TEMPLATES["ask"])
    assert caught.value.exit_code == 2
    assert caught.value.what == "The text is empty."


def test_a_text_that_is_too_long_says_by_how_much(stories_reader: TokenReader) -> None:
    text = "Lily was sad. " * 300
    count = len(stories_reader.read(text, TEMPLATES["ask"]).tokens)
    with pytest.raises(TextError) as caught:
        stories_reader.read(text, TEMPLATES["ask"], context_length=512)
    error = caught.value
    assert f"{count:,} tokens" in error.what
    assert "512" in error.why
    assert f"{count - 512:,}" in error.todo
    assert "Lily" not in str(error), "texts are private"


def test_the_limit_itself_fits(stories_reader: TokenReader) -> None:
    count = len(stories_reader.read(SAD, TEMPLATES["ask"]).tokens)
    stories_reader.read(SAD, TEMPLATES["ask"], context_length=count)
    with pytest.raises(TextError):
        stories_reader.read(SAD, TEMPLATES["ask"], context_length=count - 1)


def test_a_huge_text_is_refused_at_once(stories_reader: TokenReader) -> None:
    with pytest.raises(TextError, match="5,000,000 characters"):
        stories_reader.read("x" * 5_000_000, TEMPLATES["ask"], context_length=512)


def test_half_a_surrogate_pair(stories_reader: TokenReader) -> None:
    with pytest.raises(TextError) as caught:
        stories_reader.read("ok \ud83d", TEMPLATES["ask"])
    assert "UTF-8" in caught.value.todo


def test_gpt2_gets_its_bos_although_its_tokenizer_adds_none(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(tiny_folder("gpt2")))
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    left_alone = TokenReader(tokenizer)
    assert left_alone.bos_id is None
    assert not left_alone.read(SAD, PLAIN).tokens[0].special
    forced = TokenReader(tokenizer, prepends_bos=True)
    # trim_offsets leaves spaces out of the offsets; the spans cover them all the same.
    for text in (SAD, *HOSTILE):
        _assert_well_formed(forced.read(text, TEMPLATES["tak1"]), forced)
