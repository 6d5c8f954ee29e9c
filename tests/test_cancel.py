"""Every kind of long work, in a real engine, is cancelled within a second, and the engine stays."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from emotui.core.client import EngineClient
from emotui.core.protocol import InspectRequest, LoadRequest, ModelSpec

ROOT = Path(__file__).resolve().parent.parent


def test_all_work_is_cancelled_within_a_second(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    cancel = importlib.import_module("cancel")
    monkeypatch.setattr(cancel, "LONGEST_WAIT", 2.0)  # the benchmark spreads moments over four
    request = InspectRequest(ModelSpec(str(stories)), "", str(tmp_path))
    loaded = LoadRequest(request.spec, str(tmp_path))
    found: dict[str, list[float]] = {}
    with EngineClient(tmp_path) as client:
        client.submit(loaded).result(120)
        for name, work in cancel.works(request).items():
            seconds, kills, _ = cancel.measure(client, loaded, work, 2)
            assert kills == 0, f"{name} did not answer, and its engine was killed"
            assert all(second < cancel.BAR_SECONDS for second in seconds), (name, seconds)
            found[name] = seconds
    long = ("generation", "plain generation", "texts in batches", "probe fit")
    assert all(found[name] for name in long), "they last long enough to be cancelled"
