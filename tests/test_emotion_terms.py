"""The table of emotion words: coverage, weights, and the files a user may bring instead."""

from __future__ import annotations

import csv
from pathlib import Path

import msgspec
import pytest

from emotui.core.emotion_terms import (
    TermProfile,
    TermScore,
    TextTerms,
    load_terms,
    read_terms,
)
from emotui.core.emotions import LABEL_SETS, LEXICON, PLUTCHIK
from emotui.core.errors import UsageError
from emotui.core.export.asked import terms_lines


def test_the_table_is_large_clean_and_in_quarters() -> None:
    terms = load_terms()
    words = [term.term for term in terms]
    assert len(words) >= 251 and len(set(words)) == len(words) and words == sorted(words)
    for term in terms:
        assert term.term.isalpha() and term.term.islower()
        assert len(term.weights) == 8
        assert all(weight in (0, 0.25, 0.5, 0.75, 1) for weight in term.weights)
        assert term.empty == (term.term in ("lazy", "neutral", "nonchalant"))
    feelings = {term.term for term in terms if term.kind == "feeling"}
    assert {"tired", "numb", "stuck", "alone", "comfortable"} <= feelings


def test_every_basic_emotion_is_the_strongest_of_some_words_and_of_its_own_name() -> None:
    by_term = {term.term: term for term in load_terms()}
    strongest = [PLUTCHIK[t.weights.index(max(t.weights))] for t in by_term.values() if not t.empty]
    for emotion in PLUTCHIK:
        assert strongest.count(emotion) >= 8, emotion
        own = by_term[emotion].weights
        assert own[PLUTCHIK.index(emotion)] == 1 and sum(own) == 1


def test_words_of_the_lexicon_weigh_most_on_their_own_emotion() -> None:
    """Two tables written apart must agree."""
    for term in load_terms():
        for emotion in ("anger", "disgust", "fear", "joy", "sadness", "surprise"):
            others = [e for e in PLUTCHIK if e != emotion and term.term in LEXICON.get(e, ())]
            if term.term in LEXICON[emotion] and not others:
                assert term.weights[PLUTCHIK.index(emotion)] >= 0.5, term.term


def test_the_words_of_express_are_covered(data_dir: Path) -> None:
    with (data_dir / "express" / "terms.csv").open(encoding="utf-8") as file:
        wanted = {row["term"] for row in csv.DictReader(file)}
    assert len(wanted) == 197 and wanted <= {term.term for term in load_terms()}


def test_every_label_that_emotui_knows_is_a_word_of_the_table() -> None:
    """Else texts of that label have no true word; what is no emotion is made of none."""
    by_term = {term.term: term for term in load_terms()}
    envent = {"boredom", "guilt", "pride", "relief", "shame", "trust"}
    assert {*LABEL_SETS["ekman7"], *envent} <= set(by_term)
    assert by_term["neutral"].empty
    assert by_term["pride"].weights == by_term["proud"].weights
    assert by_term["boredom"].weights == by_term["bored"].weights


def test_a_copy_of_emolex_is_read(tmp_path: Path) -> None:
    path = tmp_path / "emolex.txt"
    rows = [("abandon", "fear", 1), ("abandon", "negative", 1), ("abandon", "joy", 0)]
    rows += [("abacus", emotion, 0) for emotion in PLUTCHIK]
    path.write_text("\n".join(f"{w}\t{e}\t{n}" for w, e, n in rows))
    abacus, abandon = read_terms(path)
    assert abacus.empty and abandon.weights == (0, 0, 0, 1, 0, 0, 0, 0)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "joy\tfear\t2\n",
        "term\tkind\tanger\nrage\temotion\t1\n",
        "term\tkind\t" + "\t".join(PLUTCHIK) + "\nrage\temotion" + "\t2" * 8 + "\n",
        "term\tkind\t" + "\t".join(PLUTCHIK) + ("\nrage\temotion" + "\t1" * 8) * 2 + "\n",
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "terms.tsv"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"terms\.tsv cannot be used"):
        read_terms(path)


@pytest.mark.parametrize(("undecomposed", "said"), [(0.5, True), (0.2, False)])
def test_a_text_without_an_emotion_is_said_to_have_none(undecomposed: float, said: bool) -> None:
    weights = dict.fromkeys(PLUTCHIK, 0.01) | {"joy": 0.4}
    words = (TermScore("neutral", 0.5, 0.2), TermScore("joy", 0.4, 0.01))
    profile = TermProfile(
        terms=words, weights=weights, corrected=weights, undecomposed=undecomposed, entropy=1.0
    )
    found = TextTerms(template="ask", table="t", words=100, neutral="Nothing.", plain=profile)
    lines = terms_lines(found)
    assert any(line.startswith("No emotion:") for line in lines) is said
    assert not any("nearly even" in line for line in lines)
    even = tuple(msgspec.structs.replace(word, corrected=0.02) for word in words)
    flat = msgspec.structs.replace(found, plain=msgspec.structs.replace(profile, terms=even))
    assert any("nearly even" in line for line in terms_lines(flat))
    assert all(len(line) <= 78 for line in terms_lines(flat))
