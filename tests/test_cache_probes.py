"""Probes on disk: cards without torch, by model, safe from damage, eviction and clearing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load
from support_cache import key_of, payload_of

from emotui.cache.probes import ProbeCard, ProbeScore
from emotui.cache.store import Store
from emotui.core.errors import CacheError, ProbeError


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
