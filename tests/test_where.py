"""Where: planted models, sources that add up, controls that take a claim away, the command."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from support_models import LAYERS, tiny_folder, tiny_model

from emotui.cache.located import kept_where
from emotui.cache.store import Store
from emotui.core.corpus import load_situations
from emotui.core.emotions import emotion_words_in
from emotui.core.engine import where as where_module
from emotui.core.engine.answer import label_tokens
from emotui.core.engine.attribute import answer_metric, gradients, margin
from emotui.core.engine.capture import QuietJob, capture
from emotui.core.engine.instruments import Instruments
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.sites import SITE_TABLES, Sites
from emotui.core.engine.value_paths import attention_sources
from emotui.core.engine.where import locate, longest_run, near
from emotui.core.errors import UsageError
from emotui.core.export.where import table_of
from emotui.core.phases import phases_of
from emotui.core.protocol import ModelSpec, WhereRequest
from emotui.core.records import Where
from emotui.core.text import template_named

TEXT = "He shouted at me for no reason."
NEUTRAL = "The bus came at nine to the door."
ASK = template_named("ask")


@pytest.fixture
def store(cache_dir: Path) -> Iterator[Store]:
    with Store.open(cache_dir) as opened:
        yield opened


def planted(attn: int | None, mlp: int | None) -> LoadedModel:
    """A Llama of which only one attention layer and one MLP write anything."""
    model = load_model(ModelSpec(model=str(tiny_folder("llama"))), QuietJob())
    hf: Any = copy.deepcopy(model.hf)
    for layer, block in enumerate(hf.model.layers):
        if layer != attn:
            block.self_attn.o_proj.weight.data.zero_()
        if layer != mlp:
            block.mlp.down_proj.weight.data.zero_()
    return dataclasses.replace(model, hf=hf, sites=Sites(hf, SITE_TABLES["llama"]))


def leaning(model: LoadedModel) -> str:
    """Return the label whose margin is most above that after the neutral text."""
    labels = label_tokens(model.reader, "ekman7", ASK)
    spans = {}
    for column, label in enumerate(labels.labels):
        after = []
        for text in (TEXT, NEUTRAL):
            record = model.reader.read(text, ASK)
            ids = [*(token.id for token in record.tokens), *labels.prefix]
            scores = capture(model, ids).logits[list(labels.deciding)]
            after.append(float(margin(scores, column)))
        spans[label] = after[0] - after[1]
    return max(spans, key=lambda label: spans[label])


def told(model: LoadedModel, store: Store, emotion: str, **changes: Any) -> Where:
    fields = {"neutral": NEUTRAL, **changes}
    request = WhereRequest(spec=ModelSpec("m"), text=TEXT, cache_dir="", emotion=emotion, **fields)
    return locate(request, model, Instruments(model, store), store, QuietJob()).where


def test_a_planted_writer_is_found_and_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only attn.1 brings anything to the readout, so all is used from layer 1 on."""
    monkeypatch.setattr(where_module, "near", lambda text, _emotion: [text])
    model = planted(attn=1, mlp=None)
    where = told(model, store, leaning(model))
    assert where.margin > where.neutral_margin
    assert where.layers.moved == pytest.approx((0, 1, 1, 1), abs=1e-4)
    assert where.layers.control == pytest.approx((0, 0, 0, 0), abs=1e-4)
    assert where.used_from == 1 and where.readable_from is None
    first = where.writers[0]
    assert (first.site, first.layer) == ("attn", 1)
    assert first.exact == pytest.approx(where.margin - where.neutral_margin, abs=1e-3)
    assert first.control == pytest.approx(0, abs=1e-4)
    assert set(where.layers.mlp) == {0.0}
    assert "used from L1 (100% moved" in where.sentence
    assert "written mainly by attn.1 from" in where.sentence
    assert "mlp" not in where.sentence
    # The named token is that of the largest part, template and special tokens aside.
    assert first.source is not None
    inside = [
        (value, position)
        for layer, position, value in zip(
            where.sources.layer, where.sources.position, where.sources.value, strict=True
        )
        if layer == 1 and where.text.tokens[position].part == "text"
    ]
    assert max(inside)[1] == first.source


def test_a_planted_mlp_behind_it_takes_its_share(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where_module, "near", lambda text, _emotion: [text])
    model = planted(attn=0, mlp=3)
    where = told(model, store, leaning(model))
    assert {
        (writer.site, writer.layer) for writer in where.writers if abs(writer.exact) > 1e-4
    } <= {
        ("attn", 0),
        ("mlp", 3),
    }
    assert where.layers.moved[3] == pytest.approx(1, abs=1e-4)
    written = [abs(value) for value in (*where.layers.attn[1:], *where.layers.mlp[:3])]
    assert max(written) == 0


def test_where_texts_of_the_same_emotion_do_as_much_nothing_is_claimed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where_module, "near", lambda _text, _emotion: [NEUTRAL])
    model = planted(attn=1, mlp=None)
    where = told(model, store, leaning(model))
    assert where.used_from is None
    assert "not shown to be used" in where.sentence
    assert "mainly" not in where.sentence


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen2"])
def test_sources_add_up_to_what_the_attention_wrote(family: str) -> None:
    model = tiny_model(family)
    labels = label_tokens(model.reader, "ekman7", ASK)
    metric = answer_metric(labels, "joy")
    assert metric is not None
    ids = [token.id for token in model.reader.read(TEXT, ASK).tokens]
    ids += labels.prefix
    found = gradients(model, ids, dataclasses.replace(metric, suffix=()), all_sites=True)
    assert found.attn is not None
    slopes = found.attn[:, -1]
    parts = attention_sources(model, ids, slopes)
    assert parts is not None and parts.shape == (LAYERS, len(ids))
    output = capture(model, ids).attn[:, -1]
    expected = torch.linalg.vecdot(output, slopes)
    if family == "gpt2":  # the bias of the projection comes from no token
        bias = torch.stack([block.attn.c_proj.bias for block in model.hf.transformer.h])
        expected = expected - torch.linalg.vecdot(bias, slopes)
    assert torch.allclose(parts.sum(dim=1), expected, rtol=1e-3, atol=1e-4)
    assert all(parameter.grad is None for parameter in model.hf.parameters())


def test_it_is_told_once_and_kept(store: Store) -> None:
    model = tiny_model("gpt2")
    first = told(model, store, "joy", neutral=None)
    assert first.neutral_texts == where_module.TEXTS and first.same_texts == where_module.TEXTS
    before = model.forwards
    assert told(model, store, "joy", neutral=None) == first
    assert model.forwards == before
    assert told(model, store, "fear", neutral=None).emotion == "fear"
    assert model.forwards > before


def test_longest_run_begins_where_it_lasts() -> None:
    assert longest_run([False, True, False, True, True]) == 3
    assert longest_run([True, False, True]) == 0
    assert longest_run([False, False]) is None
    assert longest_run([]) is None


def test_texts_to_compare_with_are_of_like_length_and_do_not_name_the_emotion() -> None:
    texts = near(TEXT, "anger")
    words = sorted(len(one.text.split()) for one in load_situations())
    assert len(set(texts)) == where_module.TEXTS
    assert all(len(text.split()) <= words[len(words) // 2] for text in texts)
    assert not any(emotion_words_in(text) for text in texts)
    assert near(texts[0], "anger")[0] != texts[0]
    assert near(TEXT, "annoyance") == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"emotion": "hunger"}, "no label of ekman7"),
        ({"emotion": "grief", "label_set": "goemotions28"}, "not told apart by one token"),
    ],
)
def test_what_cannot_be_told_says_why(store: Store, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        told(tiny_model("llama"), store, **changes)


def test_the_command_prints_one_document(stories: Path, cache_dir: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "emotui", "where", "Lily was sad because her toy was lost."),
            *("--emotion", "sadness", "--model", str(stories), "--json"),
        ],
        capture_output=True,
        timeout=120,
        check=False,
        env={**os.environ, "EMOTUI_CACHE_DIR": str(cache_dir)},
    )
    assert done.returncode == 0, done.stderr.decode()
    document = json.loads(done.stdout)
    assert document["schema"] == "emotui-where"
    assert document["where"]["layers"]["layer"] == [0, 1, 2, 3, 4]
    assert document["where"]["sentence"]
    # At the top the whole margin stands at the readout.
    assert document["where"]["layers"]["moved"][-1] > 0.5


def test_it_is_found_again_without_the_model(stories: Path, cache_dir: Path) -> None:
    """By what was asked alone, in a process that has no torch."""
    spec = ModelSpec(model=str(stories))
    model = load_model(spec, QuietJob())
    request = WhereRequest(
        spec=spec, text=TEXT, cache_dir=str(cache_dir), emotion="joy", neutral=NEUTRAL
    )
    with Store.open(cache_dir) as store:
        assert kept_where(store, request) is None
        where = locate(request, model, Instruments(model, store), store, QuietJob()).where
        assert kept_where(store, request) == where
        other = msgspec.structs.replace(request, emotion="fear")
        assert kept_where(store, other) is None
        assert kept_where(store, msgspec.structs.replace(request, neutral=None)) is None
    program = (
        "import sys, msgspec\n"
        "from pathlib import Path\n"
        "from emotui.cache.located import kept_where\n"
        "from emotui.cache.store import Store\n"
        "from emotui.core.protocol import WhereRequest\n"
        "request = msgspec.json.decode(sys.argv[1], type=WhereRequest)\n"
        "with Store.open(Path(request.cache_dir)) as store:\n"
        "    print(kept_where(store, request).sentence)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, msgspec.json.encode(request).decode()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == where.sentence, done.stderr


def test_phases_are_those_the_sentence_names(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where_module, "near", lambda text, _emotion: [text])
    model = planted(attn=1, mlp=None)
    where = told(model, store, leaning(model))
    assert [phases.letters for phases in phases_of(where)] == ["···", "·UW", "·U·", "·U·"]
    lines = table_of(where)
    rows = [line for line in lines if line.strip()[:1].isdigit()]
    assert [row.split()[:2] for row in rows] == [
        *(["3", "·U·"], ["2", "·U·"], ["1", "·UW"], ["0", "···"]),
    ], "the top layer above, as in the Layers pane"
    assert max(map(len, lines)) <= 110
