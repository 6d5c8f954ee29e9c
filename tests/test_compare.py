"""Two traces compared: columns by hand, alignment, what is not comparable; the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support_traces import made_up_trace

from emotui.cache.store import Store
from emotui.cli import _run
from emotui.core.difference import (
    KEPT_AT_READOUT,
    KEPT_ELSEWHERE,
    Difference,
    at_readout,
    compare_traces,
    pairs_of,
)
from emotui.core.engine.text_features import READOUT_FEATURES, TOKEN_FEATURES
from emotui.core.errors import EmotuiError
from emotui.core.export.compare import document_bytes, lines_of
from emotui.core.records import Answer, Features, Readouts, Trace


def changed(trace: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(trace, **changes)


def edited() -> tuple[Trace, Trace]:
    """Return a trace, and one whose readouts, answer and features differ in known ways."""
    first = made_up_trace()
    readouts = first.readouts
    z = tuple(
        None if value is None else value + (0.5 if layer == 2 else 0.0)
        for value, layer in zip(readouts.z, readouts.layer, strict=True)
    )
    answer = first.answer
    assert answer is not None
    labels = dict(answer.labels)
    labels["joy"], labels["anger"] = labels["anger"], labels["joy"]
    features = first.features
    rows = [row for row in range(len(features.index)) if row != 0]
    kept = {
        name: tuple(getattr(features, name)[row] for row in rows)
        for name in Features.__struct_fields__
    }
    second = changed(
        first,
        id="ffffffffffffffff",
        parent=first.id,
        readouts=msgspec.structs.replace(readouts, z=z),
        answer=msgspec.structs.replace(answer, labels=labels),
        features=Features(**kept),
        edits=("ablate L2/1 at all",),
    )
    return first, second


def rows_of(difference: Difference) -> list[dict[str, Any]]:
    columns = difference.readouts
    names = columns.__struct_fields__
    return [
        dict(zip(names, values, strict=True))
        for values in zip(*(getattr(columns, name) for name in names), strict=True)
    ]


def test_every_change_is_second_minus_first_and_nothing_else_changed() -> None:
    first, second = edited()
    difference = compare_traces(first, second)
    assert (difference.relation, difference.aligned, difference.notes) == ("edited", True, ())
    rows = rows_of(difference)
    places = {(row["site"], row["layer"], row["pair"], row["emotion"]) for row in rows}
    assert len(places) == len(rows) > 0
    for row in rows:
        wanted = 0.5 if row["layer"] == 2 else 0.0
        assert row["second"] - row["first"] == pytest.approx(wanted, abs=1e-9)
    by_place = {
        (site, layer, position, emotion)
        for site, layer, position, emotion in zip(
            *(getattr(first.readouts, name) for name in ("site", "layer", "position", "emotion")),
            strict=True,
        )
    }
    assert {(s, n, difference.pairs[p][0], e) for s, n, p, e in places} == by_place


def test_the_probe_fitted_for_a_token_is_the_one_compared() -> None:
    first, second = edited()
    kinds = {probe.id: probe.kind for probe in first.probes}
    columns = first.readouts
    truth = {
        (columns.site[row], columns.layer[row], columns.position[row], columns.emotion[row]): value
        for row, value in enumerate(columns.z)
        if kinds[columns.probe[row]]
        == ("readout" if columns.position[row] == first.text.readout else "token")
    }
    for row in rows_of(compare_traces(first, second)):
        place = (row["site"], row["layer"], row["pair"], row["emotion"])
        if place in truth:
            assert row["first"] == truth[place]


def test_features_appear_vanish_and_stay() -> None:
    first, second = edited()
    gone = first.features
    difference = compare_traces(first, second)
    columns = difference.features
    vanished = [row for row, how in enumerate(columns.change) if how == "vanished"]
    (row,) = vanished
    assert columns.index[row] == gone.index[0] and columns.sae[row] == gone.sae[0]
    assert difference.pairs[columns.pair[row]][0] == gone.position[0]
    assert (columns.first[row], columns.second[row]) == (gone.activation[0], 0.0)
    assert columns.certain[row]
    other = compare_traces(second, first).features
    assert [other.index[r] for r, how in enumerate(other.change) if how == "appeared"] == [
        gone.index[0]
    ]
    assert columns.change.count("stayed") == len(gone.index) - 1


def test_a_feature_past_those_that_are_kept_is_not_said_to_be_gone() -> None:
    first = made_up_trace(features_elsewhere=KEPT_ELSEWHERE)
    columns = first.features
    position = next(p for p in columns.position if p != first.text.readout)
    row = columns.position.index(position)
    index = tuple(9999 if r == row else value for r, value in enumerate(columns.index))
    second = changed(first, features=msgspec.structs.replace(columns, index=index))
    found = compare_traces(first, second).features
    certain = {how: found.certain[row] for row, how in enumerate(found.change) if how != "stayed"}
    assert certain == {"vanished": False, "appeared": False}
    assert "below the largest kept" in " ".join(_lines(found))


def _lines(columns: Any) -> list[str]:
    from emotui.core.export.compare import feature_lines

    return feature_lines(columns, list(range(len(columns.change))))


def test_the_limits_are_those_of_the_engine() -> None:
    assert (KEPT_AT_READOUT, KEPT_ELSEWHERE) == (READOUT_FEATURES, TOKEN_FEATURES)


def test_answers_are_compared_by_label_and_only_of_one_set_and_rule() -> None:
    first, second = edited()
    answer = compare_traces(first, second).answer
    assert first.answer is not None and second.answer is not None
    assert dict(zip(answer.labels, answer.second, strict=True)) == second.answer.labels
    other = Answer({"yes": 0.4, "no": 0.6}, "own", "first_token", 1)
    difference = compare_traces(first, changed(second, answer=other))
    assert difference.answer.labels == ()
    assert any("different label sets" in note for note in difference.notes)


def test_other_texts_pair_the_template_and_the_last_tokens_alone() -> None:
    first, second = made_up_trace(tokens=12), made_up_trace(tokens=15, raw="other words")
    text = changed(second.text, last=second.text.last)
    second = changed(second, text=text)
    pairs = pairs_of(first, second)
    assert (0, 0) in pairs  # BOS
    assert (first.text.readout, second.text.readout) in pairs
    assert (first.text.last, second.text.last) in pairs
    assert (11, 14) in pairs and (10, 13) in pairs and (9, 12) in pairs
    middle = [pair for pair in pairs if first.text.tokens[pair[0]].part == "text"]
    assert middle == [(first.text.last, second.text.last)]
    difference = compare_traces(first, second)
    assert difference.relation == "two_texts" and not difference.aligned
    assert any("Two texts" in note for note in difference.notes)


def test_two_models_share_no_features_and_it_is_said() -> None:
    first, second = edited()
    second = changed(second, run=changed(second.run, fingerprint="e" * 64, layers=6, model="b"))
    difference = compare_traces(first, second)
    assert difference.features.index == ()
    assert any("Two models" in note for note in difference.notes)
    assert any("4 and 6 layers" in note for note in difference.notes)
    assert difference.relation != "edited"


def test_logits_of_two_probes_are_not_subtracted() -> None:
    first, second = edited()
    none = tuple(None for _ in first.readouts.z)
    renamed = tuple(f"{name}-b" for name in second.readouts.probe)
    one = changed(first, readouts=msgspec.structs.replace(first.readouts, z=none))
    same = compare_traces(
        one, changed(second, readouts=msgspec.structs.replace(second.readouts, z=none))
    )
    assert set(same.readouts.unit) == {"logit"}
    other = msgspec.structs.replace(second.readouts, z=none, probe=renamed)
    assert compare_traces(one, changed(second, readouts=other)).readouts.layer == ()


def test_traces_without_readouts_or_features_are_compared() -> None:
    first, second = edited()
    bare = {"readouts": Readouts(), "probes": (), "features": Features(), "answer": None}
    difference = compare_traces(changed(first, **bare), changed(second, **bare))
    assert difference.readouts.layer == difference.features.index == ()
    assert "They share no readout." in lines_of(difference)


def test_the_document_has_the_readout_alone_unless_all_tokens_are_asked_for() -> None:
    difference = compare_traces(*edited())
    whole = json.loads(document_bytes(difference, all_tokens=True))
    short = json.loads(document_bytes(difference))
    assert whole["schema"] == "emotui-compare"
    readout = difference.pairs.index((difference.first.readout,) * 2)
    assert set(short["difference"]["readouts"]["pair"]) == {readout}
    assert len(set(whole["difference"]["readouts"]["pair"])) == len(difference.pairs)
    kept = at_readout(difference)
    assert len(kept.features.index) == difference.features.pair.count(readout)
    assert document_bytes(difference) == document_bytes(compare_traces(*edited()))


def test_lines_are_clean() -> None:
    first, second = edited()
    text = msgspec.structs.replace(first.text, raw="a\x1b]0;x\x07b\u202ec")
    lines = lines_of(compare_traces(changed(first, text=text), changed(second, text=text)))
    assert not any(mark in line for line in lines for mark in ("\x1b", "\x07", "\u202e"))


# The command.


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    with Store.open(tmp_path / "cache") as store:
        first, second = edited()
        store.put_trace(first, first.id + "0" * 48)
        store.put_trace(second, second.id + "0" * 48)
    return tmp_path / "cache"


def test_the_command_compares_ids_files_and_a_trace_with_its_parent(
    cache: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    first, second = edited()

    def shown(*arguments: str) -> bytes:
        assert _run(["compare", *arguments, "--cache-dir", str(cache)], debug=True) == 0
        return capfdbinary.readouterr().out

    by_ids = shown(first.id, second.id, "--json")
    assert shown(second.id[:6], "--json") == by_ids
    assert json.loads(by_ids)["difference"]["second"]["edits"] == ["ablate L2/1 at all"]
    from emotui.core.export.json import document_bytes as trace_document

    file = tmp_path / "second.json"
    file.write_bytes(trace_document(second, all_tokens=True))
    assert json.loads(shown(first.id, str(file), "--json"))["difference"]["relation"] == "edited"
    assert b"Every change is B minus A." in shown(first.id, second.id)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["0011"], 2),  # no parent
        (["0011", "abcd"], 2),  # no such trace
        (["0011", "ffff", "--tokens", "some"], 2),
    ],
)
def test_what_cannot_be_compared_is_refused(
    cache: Path, arguments: list[str], code: int, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    try:
        found = _run(["compare", *arguments, "--cache-dir", str(cache)], debug=False)
    except EmotuiError as error:
        found = error.exit_code
    assert found == code
    assert capfdbinary.readouterr().out == b""
