"""Quantised weights the whole way: traces, edits, attribution, probes, writing and the doctor."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_command import emotui_here
from support_models import tiny_folder
from support_quantised import KINDS, TEXT, needs_bitsandbytes

from emotui.cache.keys import request_key
from emotui.core.protocol import InspectRequest, ModelSpec

pytestmark = needs_bitsandbytes
OF_Z = {"int8": 0.05, "nf4": 0.3}
"""Bar on the median change of a trusted readout, in standard deviations."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quantised")


def _inspect(cache: Path, dtype: str, *more: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the demo's trace of the text, and the statistics of the run."""
    done = emotui_here(
        *("inspect", TEXT, "--dtype", dtype, "--device", "cpu", *more),
        *("--json", "--stats", "json"),
        cache_dir=cache,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), json.loads(done.stderr.splitlines()[-1])


def _rows(trace: dict[str, Any]) -> dict[tuple[Any, ...], float]:
    table = trace["readouts"]
    names = zip(
        *(table[name] for name in ("probe", "site", "layer", "position", "emotion")), strict=True
    )
    return {
        name: z
        for name, z, trust in zip(names, table["z"], table["trust"], strict=True)
        if trust == "trusted" and z is not None
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_of_the_demo_is_near_that_of_full_precision(kind: str, cache: Path) -> None:
    whole, _ = _inspect(cache, "float32")
    trace, statistics = _inspect(cache, kind)
    assert trace["run"]["dtype"] == kind and trace["run"]["device"] == "cpu"
    assert trace["id"] != whole["id"] and statistics["forwards"] > 0
    mine, theirs = _rows(trace), _rows(whole)
    assert mine.keys() == theirs.keys() and len(mine) > 100
    changes = [abs(mine[row] - theirs[row]) for row in mine]
    assert 0 < float(np.median(changes)) < OF_Z[kind]
    answers = [one["answer"]["labels"] for one in (trace, whole)]
    assert max(answers[0], key=answers[0].get) == max(answers[1], key=answers[1].get)
    # From the cache, under a key of its own.
    again, statistics = _inspect(cache, kind)
    assert again == trace and statistics["forwards"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_attribution_follows_the_gradient_of_full_precision(kind: str, cache: Path) -> None:
    writes = []
    for dtype in ("float32", kind):
        trace, _ = _inspect(cache, dtype, "--metric", "answer.sadness")
        assert trace["attribution"]["note"] == ""
        table = trace["attribution"]["writes"]
        names = zip(table["site"], table["layer"], table["position"], strict=True)
        writes.append(dict(zip(names, table["value"], strict=True)))
    assert writes[0].keys() == writes[1].keys()
    pair = np.array([[one[name] for name in writes[0]] for one in writes])
    assert np.corrcoef(pair)[0, 1] > (0.99 if kind == "int8" else 0.95)


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_does_what_it_does_in_full_precision(kind: str, cache: Path) -> None:
    """Resumed runs of edits are checked against full ones by the engine itself."""
    changes = []
    for dtype in ("float32", kind):
        before, _ = _inspect(cache, dtype)
        after, _ = _inspect(cache, dtype, "--do", "promote fear L4 +0.5 at all")
        assert after["parent"] == before["id"] and after["effects"]
        labels = before["answer"]["labels"]
        changes.append([after["answer"]["labels"][name] - labels[name] for name in labels])
    assert float(np.abs(changes[0]).max()) > 0.02
    assert np.corrcoef(changes)[0, 1] > 0.95


def test_the_kind_is_a_part_of_the_key() -> None:
    keys = {
        request_key(
            InspectRequest(spec=ModelSpec("m", dtype=dtype), text=TEXT, cache_dir=""), "0" * 64
        )
        for dtype in ("auto", "bfloat16", *KINDS)
    }
    assert len(keys) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_probes_are_fitted_listed_and_used(kind: str, tmp_path: Path) -> None:
    words = random.Random(0)
    stems = {"joy": "happy glad laughing", "sadness": "sad grieving crying"}
    rows = [
        f"{words.choice(stem.split())} {words.choice(['dog', 'bus', 'door'])} {number}\t{name}"
        for number in range(150)
        for name, stem in stems.items()
    ]
    data = tmp_path / "texts.tsv"
    data.write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    model = ("--model", str(tiny_folder("gemma2")), "--dtype", kind, "--device", "cpu")
    cache = tmp_path / "cache"
    fit = emotui_here(
        *("probe", "fit", *model, "--data", str(data), "--preview", "--json"), cache_dir=cache
    )
    assert fit.returncode == 0, fit.stderr
    done = emotui_here("inspect", TEXT, *model, "--json", cache_dir=cache)
    assert done.returncode == 0, done.stderr
    trace = json.loads(done.stdout)
    assert {"joy", "sadness"} <= set(trace["readouts"]["emotion"])
    assert all(np.isfinite([z for z in trace["readouts"]["z"] if z is not None]))
    # In full precision they are others.
    whole = emotui_here(
        *("probe", "fit", *model[:2], "--device", "cpu", "--data", str(data), "--preview"),
        "--json",
        cache_dir=cache,
    )
    ids = [{card["id"] for card in json.loads(fitted.stdout)} for fitted in (fit, whole)]
    assert len(ids[0]) == 2 and not ids[0] & ids[1]


@pytest.mark.parametrize("kind", KINDS)
def test_it_writes_and_the_doctor_finds_nothing(kind: str, tmp_path: Path) -> None:
    words = ("--dtype", kind, "--device", "cpu")
    wrote = emotui_here("generate", TEXT, *words, "--json", cache_dir=tmp_path)
    assert wrote.returncode == 0, wrote.stderr
    assert json.loads(wrote.stdout)
    for family in ("gemma2", "gpt2", "stablelm"):
        model = ("--model", str(tiny_folder(family)))
        done = emotui_here("doctor", *model, *words, cache_dir=tmp_path)
        assert done.returncode == 0, done.stdout
        facts = {line[5:].split("  ")[0]: line for line in done.stdout.splitlines()}
        assert f"{kind} on cpu" in facts["runs in"]
        assert "0.0e+00" in facts["hooked against plain logits"]
        assert facts["bitsandbytes"].startswith("ok")
        assert not any(line.startswith("bad") for line in facts.values())
