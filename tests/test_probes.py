"""Probes of a real model: fitted, stored, read back, applied, and shown by the command."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from support_command import emotui_here

from emotui.cache.probes import ProbeCard
from emotui.cache.store import Store
from emotui.core.corpus import APPRAISALS, load_situations
from emotui.core.emotions import LABEL_SETS
from emotui.core.engine.appraisals import STRENGTHS, appraisal_directions, appraisal_texts
from emotui.core.engine.capture import Activations, QuietJob, capture
from emotui.core.engine.collect import places_of
from emotui.core.engine.controls import balanced_accuracy
from emotui.core.engine.fit import fit_probes
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.probes import Probe, apply, load_probe
from emotui.core.errors import Cancelled, ProbeError
from emotui.core.protocol import FitRequest, ModelSpec
from emotui.core.records import TextRecord
from emotui.core.text import template_named

EKMAN7 = LABEL_SETS["ekman7"]
TEXT = "Lily was sad because her toy was lost."


@pytest.fixture(scope="module")
def model(stories: Path) -> LoadedModel:
    return load_model(ModelSpec(model=str(stories)), QuietJob())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open(tmp_path_factory.mktemp("probes") / "cache") as opened:
        yield opened


def _request(model: LoadedModel, store: Store, data: Path | None = None) -> FitRequest:
    return FitRequest(
        spec=model.spec, cache_dir=str(store.root), data=None if data is None else str(data)
    )


@pytest.fixture(scope="module")
def probes(model: LoadedModel, store: Store) -> tuple[Probe, Probe]:
    """The readout and the token probe of the bundled situations."""
    done = fit_probes(_request(model, store), model, store, QuietJob())
    assert done.forwards > 0
    readout, token = (load_probe(store.get_probe(name), model) for name in done.probe_ids)
    return readout, token


def _read(
    model: LoadedModel, text: str, *, all_sites: bool = False
) -> tuple[TextRecord, Activations]:
    record = model.reader.read(text, template_named("ask"))
    return record, capture(model, [token.id for token in record.tokens], all_sites=all_sites)


def test_both_kinds_cover_every_layer_and_site(
    probes: tuple[Probe, Probe], model: LoadedModel, store: Store
) -> None:
    readout, token = probes
    assert (readout.kind, token.kind) == ("readout", "token")
    for probe in probes:
        card = probe.file.card
        assert card.emotions == EKMAN7
        assert probe.places == places_of(model.n_layers)
        assert card.layers == (-1, 0, 1, 2, 3, 4)
        assert card.judged_on == (
            "held-out texts without emotion words, of topics that were not fitted on, of the same "
            "source"
        )
        assert card.n_texts == sum(item.emotion in EKMAN7 for item in load_situations())
        assert card in store.probes(model.fingerprint)
    best = max(score.test_accuracy or 0 for score in token.file.card.scores)
    assert best > 0.27  # chance is 0.14: this small model knows something of it


def test_trust_follows_from_the_numbers_of_the_card(probes: tuple[Probe, Probe]) -> None:
    seen = set()
    for probe in probes:
        for score in probe.file.card.scores:
            assert score.bag_error is not None
            above_chance = score.balanced_accuracy > score.shuffled_95
            beyond = score.balanced_accuracy - score.bag_accuracy
            needed = score.bag_errors_needed
            above_bag = needed is not None and beyond > needed * score.bag_error
            expected = "untrusted"
            if above_chance:
                expected = "trusted" if above_bag else "lexical"
            assert score.trust == expected
            seen.add(score.trust)
    assert len(seen) > 1
    readout, token = probes
    embedding = readout.file.card.score_at("resid", -1)
    bag = token.file.card.score_at("resid", -1)
    assert embedding is not None
    assert bag is not None
    # The template's last token is the same in every prompt: its embedding knows nothing.
    assert embedding.balanced_accuracy == pytest.approx(1 / 7)
    assert embedding.trust == "untrusted"
    # Where neutral texts do not differ there is no z; everywhere else there is one.
    assert [place for place in readout.places if not readout.has_z_at(*place)] == [("resid", -1)]
    assert all(token.has_z_at(*place) for place in token.places)
    # The bag of embeddings is the token probe of the embeddings, and cannot beat itself.
    assert bag.balanced_accuracy == bag.bag_accuracy == embedding.bag_accuracy
    assert bag.trust != "trusted"


def test_the_accuracy_of_the_card_is_that_of_reading_the_held_out_texts(
    probes: tuple[Probe, Probe], model: LoadedModel
) -> None:
    readout, _ = probes
    items = [t for t in load_situations() if t.split == "test" and t.emotion in EKMAN7]
    labels = torch.tensor([EKMAN7.index(item.emotion) for item in items])
    predicted: dict[tuple[str, int], list[int]] = {}
    for item in items:
        record, activations = _read(model, item.text)
        found = apply(readout, activations, record)
        rows: dict[tuple[str, int], list[float]] = {}
        for site, layer, position, value in zip(
            found.site, found.layer, found.position, found.value, strict=True
        ):
            if position == record.readout:
                rows.setdefault((site, layer), []).append(value)
        for place, values in rows.items():
            predicted.setdefault(place, []).append(values.index(max(values)))
    for score in readout.file.card.scores:
        guesses = torch.tensor(predicted[score.site, score.layer])
        accuracy = float(balanced_accuracy(guesses, labels, classes=7))
        # A tie of rounding may fall the other way in a batch of another size.
        assert score.test_accuracy == pytest.approx(accuracy, abs=0.013)


def test_apply_is_the_linear_readout_at_each_place_and_position(
    probes: tuple[Probe, Probe], model: LoadedModel
) -> None:
    record, activations = _read(model, TEXT, all_sites=True)
    for probe in probes:
        found = apply(probe, activations, record)
        positions = (
            [record.last, record.readout] if probe.kind == "readout" else range(len(record.tokens))
        )
        expected = [
            (site, layer, position, emotion)
            for site, layer in probe.places
            for position in positions
            for emotion in EKMAN7
        ]
        rows = list(zip(found.site, found.layer, found.position, found.emotion, strict=True))
        assert rows == expected
        assert set(found.probe) == {probe.id}
        trust = {(s.site, s.layer): s.trust for s in probe.file.card.scores}
        for number in range(0, len(rows), 5):
            site, layer, position, emotion = rows[number]
            place, k = probe.places.index((site, layer)), EKMAN7.index(emotion)
            h = activations.at(site, layer)[position].double()
            along = (h - probe.center[place]) @ probe.weight[place, :, k].double()
            value = float(along + probe.bias[place, k])
            assert found.value[number] == pytest.approx(value, abs=1e-4)
            z = (value - float(probe.neutral_mean[place, k])) / float(probe.neutral_sd[place, k])
            shown = found.z[number]
            assert (shown is None) == (z != z)
            assert shown is None or shown == pytest.approx(z, abs=1e-3)
            assert found.trust[number] == trust[site, layer]
            in_kind = (
                position == record.readout
                if probe.kind == "readout"
                else record.tokens[position].part == "text"
            )
            assert found.mark[number] == ("" if in_kind else "outside")


def test_sites_that_were_kept_at_the_readout_are_read_there_alone(
    probes: tuple[Probe, Probe], model: LoadedModel
) -> None:
    record, activations = _read(model, TEXT)
    for probe in probes:
        found = apply(probe, activations, record)
        elsewhere = {p for s, p in zip(found.site, found.position, strict=True) if s != "resid"}
        assert elsewhere == {record.readout}
        assert {s for s in found.site} == {"resid", "attn", "mlp"}


def test_neutral_texts_are_around_zero_and_seldom_marked(
    probes: tuple[Probe, Probe], model: LoadedModel
) -> None:
    neutral = [item.text for item in load_situations() if item.emotion == "neutral"]
    for probe in probes:
        read = [_read(model, text, all_sites=True) for text in neutral[::2]]
        marked, resid = 0, []
        for record, activations in read:
            found = apply(probe, activations, record)
            above = probe.summary(len(record.tokens)).marked_above
            cells = [
                (site, value)
                for site, value, mark in zip(found.site, found.z, found.mark, strict=True)
                if mark == "" and value is not None
            ]
            marked += max(value for site, value in cells if site == "resid") > above["resid"]
            resid += [value for _, value in cells]
        # At most one in twenty at the threshold of one site, with a margin for 80 texts.
        assert marked / len(read) < 0.15
        values = torch.tensor(resid)
        # The probes saw most of these texts, which their z is free of.
        assert abs(float(values.mean())) < 0.3
        assert 0.7 < float(values.std()) < 1.4


def test_a_probe_survives_its_file_unchanged(
    probes: tuple[Probe, Probe], model: LoadedModel
) -> None:
    for probe in probes:
        again = load_probe(probe.to_bytes(), model)
        assert again.file == probe.file
        for name in ("weight", "center", "bias", "neutral_mean", "neutral_sd"):
            ours, theirs = getattr(again, name), getattr(probe, name)
            assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())
            assert ours.dtype == torch.float32


def test_a_probe_of_another_model_or_a_damaged_one_is_refused(
    probes: tuple[Probe, Probe], model: LoadedModel
) -> None:
    payload = probes[0].to_bytes()
    other = dataclasses.replace(model, fingerprint="0" * 64)
    with pytest.raises(ProbeError, match="of another model"):
        load_probe(payload, other)
    for broken in (b"", payload[:50], payload[:-10], b"\x80\x04pickle" + payload):
        with pytest.raises(ProbeError, match="could not be used"):
            load_probe(broken, model)


def test_thresholds_by_length_and_none_beyond_what_was_seen(probes: tuple[Probe, Probe]) -> None:
    readout, token = probes
    assert readout.summary(5).marked_above == readout.summary(5000).marked_above
    longest = [threshold.longest for threshold in token.file.thresholds]
    assert len(longest) == 4
    assert longest == sorted(longest, key=lambda n: n or 0)
    assert token.summary(3).marked_above == token.file.thresholds[0].above
    assert longest[-1] is not None
    assert token.summary(longest[-1] + 1).marked_above == {}
    summary = token.summary(40)
    best = max(
        (s for s in token.file.card.scores if s.site == "resid"),
        key=lambda s: (s.dev_accuracy or 0, -s.layer),
    )
    assert summary.held_out_accuracy == best.balanced_accuracy
    assert summary.bag_accuracy == best.bag_accuracy


def test_a_fit_holds_the_appraisals_with_their_controls(
    probes: tuple[Probe, Probe], model: LoadedModel, store: Store
) -> None:
    readout, token = probes
    scores = readout.file.card.appraisals
    assert token.file.card.appraisals == ()
    assert [(one.layer, one.appraisal) for one in scores] == [
        (layer, name) for layer in range(model.n_layers) for name in APPRAISALS
    ]
    # `modulate` finds them: nothing is run again.
    before = model.forwards
    found = appraisal_directions(model, template_named("ask"), store, QuietJob())
    assert model.forwards == before
    assert found.scores == scores
    assert all(found.r_squared(one.layer, one.appraisal) == one.r_squared for one in scores)
    # The bag of embeddings, made here from the embedding matrix, by scikit-learn's ridge.
    situations = appraisal_texts()
    table = model.hf.get_input_embeddings().weight.detach().float()
    records = [model.reader.read(one.text, template_named("ask")) for one in situations]
    bag = torch.stack(
        [
            table[[token.id for token in record.tokens if token.part == "text"]].mean(dim=0)
            for record in records
        ]
    )
    rows = {
        name: [i for i, one in enumerate(situations) if one.split == name]
        for name in ("train", "dev", "test")
    }
    values = np.array([one.appraisals for one in situations], dtype=float)
    x = bag.double().numpy()
    centred = x[rows["train"]] - x[rows["train"]].mean(0)
    scale = float((np.linalg.svd(centred, compute_uv=False) ** 2).mean())
    fits = [
        Ridge(alpha=strength * scale).fit(x[rows["train"]], values[rows["train"]])
        for strength in STRENGTHS
    ]
    best = max(fits, key=lambda fit: fit.score(x[rows["dev"]], values[rows["dev"]]))
    expected = r2_score(
        values[rows["test"]], best.predict(x[rows["test"]]), multioutput="raw_values"
    )
    told = [one.bag_r_squared for one in scores[: len(APPRAISALS)]]
    assert told == pytest.approx(expected.tolist(), abs=1e-3)
    # Shuffled values explain nothing, and the model knows more than they do of pleasantness.
    assert all(one.shuffled_95 < 0.1 for one in scores)
    pleasant = next(
        one for one in readout.file.card.best_appraisals() if one.appraisal == "pleasantness"
    )
    assert pleasant.r_squared > pleasant.shuffled_95
    assert pleasant.dev_r_squared == max(
        one.dev_r_squared for one in scores if one.appraisal == "pleasantness"
    )


@pytest.fixture(scope="module")
def two_labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled file without neutral texts, quick to fit on."""
    path = tmp_path_factory.mktemp("data") / "mine.tsv"
    items = [item for item in load_situations() if item.emotion in ("joy", "anger")][:200]
    lines = [f"{item.text}\t{item.emotion}\t{item.topic}" for item in items]
    path.write_text("sentence\tfeeling\ttopic\n" + "\n".join(lines), encoding="utf-8")
    return path


def test_without_neutral_texts_there_is_no_z(
    model: LoadedModel, store: Store, two_labels: Path
) -> None:
    done = fit_probes(_request(model, store, two_labels), model, store, QuietJob())
    probe = load_probe(store.get_probe(done.probe_ids[1]), model)
    assert probe.emotions == ("anger", "joy")
    assert probe.file.card.data.startswith("mine.tsv (text: sentence, label: feeling; ")
    record, activations = _read(model, TEXT)
    found = apply(probe, activations, record)
    assert set(found.z) == {None}
    assert not any(probe.has_z_at(site, layer) for site, layer in probe.places)
    assert all(abs(value) < 1e4 for value in found.value)
    assert probe.summary(10).marked_above == {}


def test_the_same_fit_is_the_same_probe_and_another_seed_is_not(
    model: LoadedModel, store: Store, two_labels: Path, tmp_path: Path
) -> None:
    request = _request(model, store, two_labels)
    first = fit_probes(request, model, store, QuietJob()).probe_ids
    before = load_probe(store.get_probe(first[0]), model)
    with Store.open(tmp_path / "cache") as another:
        assert fit_probes(request, model, another, QuietJob()).probe_ids == first
        again = load_probe(another.get_probe(first[0]), model)
        assert all(map(torch.equal, again.weight, before.weight))
    other = msgspec.structs.replace(request, seed=1)
    assert not set(fit_probes(other, model, store, QuietJob()).probe_ids) & set(first)


@pytest.mark.parametrize("phase", ["running the model", "fitting the token probes"])
def test_a_cancelled_fit_stores_nothing(
    phase: str, model: LoadedModel, tmp_path: Path, two_labels: Path
) -> None:
    class Impatient(QuietJob):
        reached = False

        def progress(self, phase_: str, done: int = 0, total: int = 0, /) -> None:
            self.reached = self.reached or phase_ == phase

        def check(self) -> None:
            if self.reached:
                raise Cancelled("cancelled")

    with Store.open(tmp_path / "cache") as store:
        with pytest.raises(Cancelled):
            fit_probes(_request(model, store, two_labels), model, store, Impatient())
        assert store.probes() == []
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())


# --- the command -------------------------------------------------------------------------------


def _run(*arguments: str, cache_dir: Path) -> subprocess.CompletedProcess[str]:
    return emotui_here(*arguments, "--cache-dir", str(cache_dir), cache_dir=cache_dir)


def _start(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Start the program itself."""
    return subprocess.run(
        [sys.executable, "-m", "emotui", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        check=False,
    )


def test_the_command_fits_lists_and_shows(stories: Path, tmp_path: Path, two_labels: Path) -> None:
    cache = tmp_path / "cache"
    fitted = _start(
        *("probe", "fit", "--model", str(stories), "--data", str(two_labels), "--json"),
        *("--cache-dir", str(cache)),
    )
    assert fitted.returncode == 0, fitted.stderr
    cards = json.loads(fitted.stdout)
    assert [card["kind"] for card in cards] == ["readout", "token"]
    assert "MB of memory" in fitted.stderr
    listed = _run("probe", "list", cache_dir=cache)
    assert listed.returncode == 0
    assert all(card["id"] in listed.stdout for card in cards)
    shown = _run("probe", "show", cards[1]["id"][:12], cache_dir=cache)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert sum(line.split()[:1] == ["resid"] for line in lines) == 2 * 6  # scores, controls
    assert "anger, joy" in shown.stdout
    document = json.loads(_run("probe", "show", cards[0]["id"], "--json", cache_dir=cache).stdout)
    assert document == cards[0]
    _assert_controls_are_shown(cards[1], lines)
    shown = _run("probe", "show", cards[0]["id"], cache_dir=cache)
    for name in APPRAISALS:
        assert any(line.split()[:1] == [name] for line in shown.stdout.splitlines())
    assert "(bag " in listed.stdout


def _assert_controls_are_shown(card: dict[str, Any], lines: list[str]) -> None:
    """Every score has its controls, in the document and, rounded, in the second table."""
    named = ("control_accuracy", "selectivity", "random_accuracy", "orthogonal_accuracy")
    start = next(n for n, line in enumerate(lines) if line.startswith("controls"))
    assert f"{card['control_words']:,} first words" in lines[start]
    rows = [line.split() for line in lines[start:]]
    for score in card["scores"]:
        assert all(-1 <= score[name] <= 1 for name in named)
        layer = "emb" if score["layer"] < 0 else str(score["layer"])
        row = next(row for row in rows if row[:2] == [score["site"], layer])
        assert row[3:] == [f"{score[name]:.2f}" for name in named]


def test_a_probe_from_before_the_controls_is_read_and_says_not_measured(
    probes: tuple[Probe, Probe], tmp_path: Path
) -> None:
    card = msgspec.to_builtins(probes[0].file.card)
    for name in ("control_words", "control_texts"):
        del card[name]
    for score in card["scores"]:
        for name in ("control_accuracy", "selectivity", "random_accuracy", "orthogonal_accuracy"):
            del score[name]
    old = msgspec.convert(card, ProbeCard)
    assert all(score.control_accuracy is None for score in old.scores)
    with Store.open(tmp_path) as store:
        store.put_probe(old.id, probes[0].to_bytes(), old)
    shown = _run("probe", "show", old.id, cache_dir=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "control task and random directions: not measured" in shown.stdout


def test_listing_and_showing_import_no_torch(probes: tuple[Probe, Probe], store: Store) -> None:
    program = (
        "import sys\nfrom emotui.cli import _run\n"
        "code = _run(sys.argv[1:], debug=False)\n"
        "heavy = {'torch', 'transformers', 'sae_lens', 'transformer_lens'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    for arguments in (["list"], ["show", probes[1].id]):
        done = subprocess.run(
            [sys.executable, "-c", program, "probe", *arguments, "--cache-dir", str(store.root)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert probes[1].id in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("show", "nothing"), 2, "There is no probe 'nothing'"),
        (("fit", "--data", "/nowhere.tsv"), 2, "could not be read"),
        (("fit", "--labels", "moods"), 2, "no label set"),
        (("fit", "--template", "poem"), 2, "no template"),
    ],
)
def test_what_cannot_be_meant_is_said_before_a_model_is_loaded(
    arguments: tuple[str, ...], code: int, words: str, tmp_path: Path
) -> None:
    done = _run("probe", *arguments, cache_dir=tmp_path / "cache")
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert done.stdout == ""
