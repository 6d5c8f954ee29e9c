"""Read, lens, say: the rule on made-up traces, the words of the lens against plain logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from support_models import plain_model, tiny_folder, tiny_model
from support_traces import LABELS, made_up_trace

from emotui.cache.codec import decode_trace, encode_trace
from emotui.core.agreement import Said, agreement_of, said_at, words_of
from emotui.core.engine.answer import label_tokens, read_answer
from emotui.core.engine.capture import QuietJob, capture
from emotui.core.engine.lens import read_lens
from emotui.core.engine.operations import Session, handle
from emotui.core.errors import ExportError
from emotui.core.export.json import document_bytes, read_document
from emotui.core.protocol import Inspected, InspectRequest, ModelSpec
from emotui.core.records import Lens, LensWords, Trace
from emotui.core.text import template_named

ASK = template_named("ask")
LAYER = 2


def made_up(read: str, lens: str, answer: str, *, trust: str = "trusted", mark: str = "") -> Trace:
    """A trace whose readout at one layer says these three things."""
    trace = made_up_trace()
    readout, columns = trace.text.readout, trace.readouts
    rows = range(len(columns.value))

    def here(row: int) -> bool:
        place = (columns.probe[row], columns.site[row], columns.position[row], columns.layer[row])
        return place == ("probe-readout", "resid", readout, LAYER)

    assert trace.lens is not None and trace.answer is not None
    share = {label: 0.7 if label == lens else 0.05 for label in LABELS}
    words = LensWords(
        labels=LABELS,
        position=(readout,),
        probability=tuple(share.values()) * trace.run.layers,
        rank=tuple(0 if label == lens else 40 for label in LABELS) * trace.run.layers,
    )
    return msgspec.structs.replace(
        trace,
        readouts=msgspec.structs.replace(
            columns,
            value=tuple(
                (9.0 if columns.emotion[row] == read else -9.0) if here(row) else 0.0
                for row in rows
            ),
            trust=tuple(trust if here(row) else "untrusted" for row in rows),
            mark=tuple(mark if here(row) else columns.mark[row] for row in rows),
        ),
        lens=msgspec.structs.replace(trace.lens, words=words),
        answer=msgspec.structs.replace(
            trace.answer, labels={label: float(label == answer) for label in LABELS}
        ),
    )


def said(trace: Trace) -> Said:
    return said_at(trace, trace.text.readout, LAYER)


@pytest.mark.parametrize(
    ("three", "pairs"),
    [
        (("joy", "joy", "joy"), set()),
        (("joy", "fear", "joy"), {("probe", "lens"), ("lens", "answer")}),
        (("joy", "fear", "fear"), {("probe", "lens"), ("probe", "answer")}),
        (("joy", "joy", "fear"), {("probe", "answer"), ("lens", "answer")}),
        (("joy", "fear", "anger"), {("probe", "lens"), ("probe", "answer"), ("lens", "answer")}),
    ],
)
def test_the_rule(three: tuple[str, str, str], pairs: set[tuple[str, str]]) -> None:
    trace = made_up(*three)
    found = said(trace)
    assert set(found.pairs) == pairs
    assert found.verdict == ("disagree" if pairs else "agree")
    assert (found.read and found.read.emotion, found.answer) == (three[0], three[2])
    assert found.lens is not None and found.lens.labels[0] == three[1]
    line = words_of(found)
    assert f"reads {three[0]} (trusted)" in line and f"answers {three[2]}" in line
    assert ("≠" in line) == ("disagree" in line) == bool(pairs)
    kept = agreement_of(trace)
    row = (kept.read[LAYER], kept.lens[LAYER], kept.answer[LAYER], kept.verdict[LAYER])
    assert row == (*three, found.verdict)


@pytest.mark.parametrize(
    ("three", "words"),
    [
        (("joy", "fear", "joy"), "≠ lens disagrees"),
        (("joy", "fear", "fear"), "≠ probe disagrees"),
        (("joy", "joy", "fear"), "≠ answer disagrees"),
        (("joy", "fear", "anger"), "≠ all disagree"),
    ],
)
def test_who_stands_alone_is_named(three: tuple[str, str, str], words: str) -> None:
    assert words_of(said(made_up(*three))).endswith(words)


def test_what_an_edit_changed_is_said() -> None:
    before, after = said(made_up("joy", "joy", "joy")), said(made_up("joy", "joy", "fear"))
    line = words_of(after, before)
    assert "reads joy (trusted)" in line and "lens joy #1" in line
    assert "answers joy→fear" in line and "≠ answer disagrees" in line
    assert words_of(before, after).endswith("answers fear→joy · agree now")
    assert words_of(before, before) == words_of(before)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"trust": "untrusted"}, "(untrusted)"),
        ({"trust": "lexical"}, "(lexical)"),
        ({"mark": "by_construction"}, "(by construction)"),
        ({"mark": "outside"}, "(outside)"),
    ],
)
def test_a_probe_that_does_not_count_is_marked_and_disagrees_with_nothing(
    changes: dict[str, str], word: str
) -> None:
    found = said(made_up("joy", "fear", "fear", **changes))
    assert found.verdict == "agree" and word in words_of(found)


def test_what_cannot_be_compared_is_not() -> None:
    trace = made_up("joy", "joy", "joy")
    assert trace.lens is not None and trace.answer is not None
    bare = msgspec.structs.replace(trace, answer=None, lens=None)
    assert said(bare).verdict == "" and said(bare).lens is None
    # An answer of another set: its label is none of the probe's, so nothing is said of the two.
    other = msgspec.structs.replace(trace.answer, labels={"grief": 0.9, "joy": 0.1})
    assert said(msgspec.structs.replace(trace, answer=other, lens=None)).verdict == ""
    # Traces from before the words were kept still have the labels' shares at the readout.
    old = msgspec.structs.replace(trace.lens, words=LensWords())
    assert said(msgspec.structs.replace(trace, lens=old)).lens is not None
    assert said_at(msgspec.structs.replace(trace, lens=old), 2, LAYER).lens is None
    assert said_at(trace, trace.text.readout, -1).lens is None


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_words_at_the_top_layer_are_those_of_plain_logits(family: str) -> None:
    """After every token, against the Hugging Face model alone."""
    tiny = tiny_model(family)
    ids = [token.id for token in tiny.reader.read("My dog died last week.", ASK).tokens]
    kept = capture(tiny, ids)
    reading = read_answer(tiny, kept, label_tokens(tiny.reader, "ekman7", ASK))
    words = read_lens(tiny, kept, reading).words
    shape = (len(ids), tiny.n_layers, len(words.labels))
    assert words.position == tuple(range(len(ids)))
    found = torch.tensor(words.probability).reshape(shape)[:, -1]
    with torch.no_grad():
        logits = plain_model(tiny_folder(family))(torch.tensor([ids])).logits[0]
    deciding = list(reading.label_tokens.deciding)
    expected = logits[:, deciding].softmax(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    order = logits[-1].argsort(descending=True).tolist()
    ranks = words.rank[-len(words.labels) :]
    assert list(ranks) == [order.index(token) for token in deciding]


def test_words_of_lower_layers_follow_the_definition() -> None:
    """Norm recomputed, soft-capped: written out with Gemma-2's own weights, at a text token."""
    tiny = tiny_model("gemma2")
    record = tiny.reader.read("My dog died last week.", ASK)
    kept = capture(tiny, [token.id for token in record.tokens])
    reading = read_answer(tiny, kept, label_tokens(tiny.reader, "ekman7", ASK))
    words = read_lens(tiny, kept, reading).words
    h = kept.at("resid", 1)[3]
    weights = tiny.hf.state_dict()
    normed = h / (h.square().mean() + tiny.hf.config.rms_norm_eps).sqrt()
    normed = normed * (1 + weights["model.norm.weight"])
    cap = tiny.hf.config.final_logit_softcapping
    logits = cap * torch.tanh(weights["lm_head.weight"] @ normed / cap)
    expected = logits[list(reading.label_tokens.deciding)].softmax(-1)
    shape = (len(words.position), tiny.n_layers, len(words.labels))
    found = torch.tensor(words.probability).reshape(shape)[3, 1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_where_labels_share_a_prefix_only_the_readout_is_read() -> None:
    tiny = tiny_model("llama")
    text = tiny.reader.read("My dog died last week.", ASK)
    kept = capture(tiny, [token.id for token in text.tokens])
    tokens = label_tokens(tiny.reader, "ekman7", ASK)
    shared = replace(
        tokens,
        sequences=tuple((7, *sequence) for sequence in tokens.sequences),
        prefix=(7,),
        rule="after_shared_prefix",
    )
    words = read_lens(tiny, kept, read_answer(tiny, kept, shared)).words
    assert words.position == (kept.readout,) and words.labels == tokens.labels
    with torch.no_grad():
        plain = plain_model(tiny_folder("llama"))(torch.tensor([[*kept.token_ids, 7]]))
    expected = plain.logits[0, -1, list(tokens.deciding)].softmax(-1)
    top = torch.tensor(words.probability[-len(words.labels) :])
    torch.testing.assert_close(top, expected, rtol=0, atol=1e-5)
    whole = replace(tokens, rule="whole_label")
    assert read_lens(tiny, kept, read_answer(tiny, kept, whole)).words == LensWords()


@pytest.fixture
def trace(stories: Path, cache_dir: Path) -> Trace:
    session = Session()
    request = InspectRequest(
        spec=ModelSpec(str(stories)), text="Lily was sad.", cache_dir=str(cache_dir)
    )
    done = handle(request, QuietJob(), session)
    assert isinstance(done, Inspected)
    found = session.store(str(cache_dir)).get_trace(done.trace_id)
    session.close_store()
    return found


def test_words_travel_with_the_trace(trace: Trace) -> None:
    assert trace.lens is not None and trace.lens.words.labels
    assert trace.agreement == agreement_of(trace)
    payload, metadata = encode_trace(trace)
    assert decode_trace(payload, metadata) == trace
    every = read_document(document_bytes(trace, all_tokens=True))
    assert every.lens is not None and every.lens.words.position == trace.lens.words.position
    readout = read_document(document_bytes(trace, all_tokens=False))
    assert readout.lens is not None
    assert readout.lens.words.position == (trace.text.readout,)
    assert said_at(readout, trace.text.readout, 3).lens is not None
    assert agreement_of(readout) == trace.agreement
    short = msgspec.structs.replace(readout.lens.words, rank=readout.lens.words.rank[1:])
    lens = msgspec.structs.replace(readout.lens, words=short)
    broken = msgspec.structs.replace(trace, lens=lens)
    with pytest.raises(ExportError, match=r"lens\.words\.rank"):
        read_document(document_bytes(broken, all_tokens=True))


def test_a_trace_without_words_is_kept_as_it_was(trace: Trace) -> None:
    old = msgspec.structs.replace(
        trace, lens=msgspec.structs.replace(trace.lens or Lens(), words=LensWords()), agreement=None
    )
    payload, metadata = encode_trace(old)
    assert b"lens.words" not in payload
    assert decode_trace(payload, metadata) == old
