"""Probes on disk: cards without torch, by model, safe from damage, eviction and clearing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load
from support_cache import key_of, payload_of

from emotui.cache import prepare as prepare_module
from emotui.cache.prepare import ids_in_force, probes_in_force
from emotui.cache.probes import ProbeCard, ProbeScore
from emotui.cache.store import Store
from emotui.cli import _run
from emotui.core.emotions import LABEL_SETS
from emotui.core.errors import CacheError, ProbeError
from emotui.core.probe_words import PREVIEW
from emotui.core.protocol import InspectRequest, ModelSpec


def card(name: str, *, model: str = "m", created: str = "2026-01-01T00:00:00Z") -> ProbeCard:
    return ProbeCard(
        id=name,
        fingerprint=key_of(model),
        model=model,
        kind="readout",
        label_set="ekman7",
        emotions=("anger", "joy"),
        template="ask",
        data="corpus",
        created=created,
        sites=("resid",),
        layers=(-1, 0, 1),
        n_texts=100,
        scores=(
            ProbeScore("resid", -1, 0.2, 0.25, 0.3, "untrusted"),
            ProbeScore("resid", 0, 0.5, 0.25, 0.3, "trusted"),
            ProbeScore("resid", 1, 0.5, 0.25, 0.6, "lexical"),
        ),
    )


def test_probes_come_back_with_their_cards_newest_first(cache_dir: Path) -> None:
    with Store.open(cache_dir) as store:
        store.put_probe("old", payload_of(1), card("old"))
        store.put_probe("new", payload_of(2), card("new", created="2026-02-01T00:00:00Z"))
        store.put_probe("other", payload_of(3), card("other", model="n"))
    with Store.open(cache_dir) as store:
        assert [c.id for c in store.probes(key_of("m"))] == ["new", "old"]
        assert {c.id for c in store.probes()} == {"new", "old", "other"}
        assert store.probes(key_of("x")) == []
        assert store.probes(key_of("n")) == [card("other", model="n")]
        payload = store.get_probe("new")
        assert np.array_equal(load(payload)["resid"], load(payload_of(2))["resid"])
        folder = cache_dir / "probes" / key_of("m")[:16]
        assert sorted(path.name for path in folder.iterdir()) == [
            "new.safetensors",
            "old.safetensors",
        ]
        assert store.size().probes.count == 3


def test_a_card_tells_its_scores() -> None:
    best = card("a").best()
    assert best is not None
    assert (best.layer, best.trust) == (0, "trusted")
    score = card("a").score_at("resid", 1)
    assert score is not None
    assert score.trust == "lexical"
    assert card("a").score_at("attn", 1) is None
    assert card("a").best("mlp") is None


def test_a_probe_survives_eviction_and_clearing_but_not_clear_everything(cache_dir: Path) -> None:
    with Store.open(cache_dir) as store:
        store.put_probe("p", payload_of(1), card("p"))
        store.prune(0)
        store.clear()
        assert [c.id for c in store.probes()] == ["p"]
        assert store.clear(everything=True).count == 1
        assert store.probes() == []


def test_a_damaged_probe_is_an_error_that_says_what_to_do(cache_dir: Path) -> None:
    with Store.open(cache_dir) as store:
        store.put_probe("p", payload_of(1), card("p"))
        (path,) = (cache_dir / "probes").rglob("p.safetensors")
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(ProbeError, match="damaged") as caught:
            store.get_probe("p")
        assert "probe fit" in caught.value.todo
        os.truncate(path, 30)
        assert store.probes() == []
        assert store.verify().damaged == (path.relative_to(cache_dir).as_posix(),)
        with pytest.raises(ProbeError, match="no probe p"):
            store.get_probe("p")


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden", "x" * 200, "a\0b", "*"])
def test_an_id_is_never_a_path(cache_dir: Path, name: str) -> None:
    with Store.open(cache_dir) as store:
        with pytest.raises(ProbeError, match="cannot be the id"):
            store.get_probe(name)
        with pytest.raises(ProbeError, match="cannot be the id"):
            store.put_probe(name, payload_of(1), card(name))


def test_an_unknown_probe_and_a_full_disk_are_clear_errors(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with Store.open(cache_dir) as store:
        with pytest.raises(ProbeError, match="no probe nope"):
            store.get_probe("nope")
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(CacheError, match="full"):
            store.put_probe("p", payload_of(1), card("p"))
        assert list((cache_dir / "probes").rglob("*.*")) == []


def test_a_card_is_put_with_its_own_probe_only(cache_dir: Path) -> None:
    with Store.open(cache_dir) as store:
        with pytest.raises(ValueError, match="card"):
            store.put_probe("a", payload_of(1), card("b"))
        with pytest.raises(ValueError, match="safetensors"):
            store.put_probe("a", b"pickle", card("a"))


# --- which one reads ---------------------------------------------------------------------------

EKMAN7 = LABEL_SETS["ekman7"]


def fitted(
    store: Store, name: str, day: int, *, emotions: tuple[str, ...] = EKMAN7, **fields: Any
) -> tuple[str, str]:
    """Store the readout and the token probe of one fit; the later the day, the newer."""
    ids = []
    for kind in ("readout", "token"):
        made = msgspec.structs.replace(
            card(f"{name}-{kind}", created=f"2026-03-{day:02}T00:00:00Z"),
            **{"kind": kind, "emotions": emotions, "data": name, **fields},
        )
        store.put_probe(made.id, payload_of(day), made)
        ids.append(made.id)
    return ids[0], ids[1]


def in_force(store: Store, *chosen: str, **asked: str) -> tuple[str, ...]:
    wanted = {"template": "ask", "label_set": "ekman7", **asked}
    return probes_in_force(store, key_of("m"), chosen=chosen, **wanted)


def test_the_newest_full_fit_of_all_emotions_reads(cache_dir: Path) -> None:
    with Store.open(cache_dir) as store:
        assert in_force(store) == ()
        preview = fitted(store, "quick", 9, data=f"{PREVIEW}: emotui situations")
        assert in_force(store) == preview  # better than none
        three = fitted(store, "three", 8, emotions=("anger", "fear", "joy"))
        assert in_force(store) == three
        full = fitted(store, "full", 1)
        assert in_force(store) == full
        newer = fitted(store, "newer", 2)
        assert in_force(store) == newer
        assert in_force(store, label_set="plutchik9") == ()
        own = fitted(store, "mine", 3, label_set="defined-dread", emotions=("dread",))
        assert in_force(store) == (*newer, *own)
        assert ids_in_force(store) == {*newer, *own}


def test_a_chosen_probe_reads_in_its_place_with_its_other_kind(cache_dir: Path) -> None:
    with Store.open(cache_dir) as store:
        small = fitted(store, "small", 1, emotions=("anger", "joy"))
        full = fitted(store, "full", 2)
        other = fitted(store, "plutchik", 3, label_set="plutchik9")
        own = fitted(store, "mine", 3, label_set="defined-dread", emotions=("dread",))
        older = fitted(store, "older", 1, label_set="defined-dread", emotions=("dread",))
        assert in_force(store) == (*full, *own)
        assert in_force(store, "small-readout") == (*small, *own)
        assert in_force(store, "plutchik-tok") == (*other, *own)
        assert in_force(store, "small-readout", "full-token") == (small[0], full[1], *own)
        assert in_force(store, "older-readout") == (*full, *older)


def test_a_probe_that_cannot_be_chosen_is_refused_and_says_why(cache_dir: Path) -> None:
    with Store.open(cache_dir) as store:
        fitted(store, "full", 2)
        fitted(store, "small", 1, emotions=("anger", "joy"))
        fitted(store, "raw", 1, template="raw")
        store.put_probe("foreign", payload_of(3), card("foreign", model="n"))
        for names, words in (
            (("nothing",), "There is no probe 'nothing'"),
            (("full",), "begins the ids of 2 probes"),
            (("foreign",), "of another model"),
            (("raw-readout",), "reads another prompt"),
            (("full-readout", "small-readout"), "Two readout probes"),
        ):
            with pytest.raises(ProbeError, match=words) as refused:
                in_force(store, *names)
            assert refused.value.exit_code == 2
        assert in_force(store, "raw-readout", template="raw")


def test_the_request_is_prepared_with_the_chosen_probe(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "known_request_key", lambda *_: None)
    with Store.open(cache_dir) as store:
        small = fitted(store, "small", 1, emotions=("anger", "joy"))
        fitted(store, "full", 2)
        asked = InspectRequest(ModelSpec("m"), "a text", "", chosen=("small-readout",))
        ready = prepare_module.prepare(asked, store, fingerprint=key_of("m")).request
        assert ready.probes == small
        again = prepare_module.prepare(ready, store, fingerprint=key_of("m")).request
        assert again == ready


def test_the_command_removes_probes_and_the_one_before_reads_again(
    cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> int:
        return _run(["probe", *arguments, "--cache-dir", str(cache_dir)], debug=False)

    with Store.open(cache_dir) as store:
        old, new = fitted(store, "old", 1), fitted(store, "new", 2)
    assert run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    told = {line.split()[0]: line.endswith("  in force") for line in lines if line[0] != " "}
    assert {name for name, reads in told.items() if reads} == set(new)
    assert set(told) == {*old, *new}
    assert run("remove", "new-readout", "absent") == 2  # nothing is removed
    with Store.open(cache_dir) as store:
        assert in_force(store) == new
    assert run("remove", *new) == 0
    with Store.open(cache_dir) as store:
        assert in_force(store) == old
