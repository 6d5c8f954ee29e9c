"""The whole way of a text for every architecture: tokens, trace, feature edit, resume, writing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support_models import LAYERS, WIDTH, WITHOUT_BOS, plain_model, tiny_folder, tiny_model
from support_saes import write_residual_saes
from torch import Tensor

from emotui.cache.store import Store
from emotui.core.engine import statistics
from emotui.core.engine.capture import Hook, QuietJob, capture
from emotui.core.engine.instruments import Instruments
from emotui.core.engine.operations import Session, handle
from emotui.core.engine.rerun import adding, rerun
from emotui.core.engine.sites import SITE_TABLES, HookSite
from emotui.core.engine.speak import generate
from emotui.core.protocol import Inspected, InspectRequest, ModelSpec

TEXT = "My dog died last week, and the house is very quiet now. It was because I was sad."
FAMILIES = tuple(SITE_TABLES)


@pytest.mark.parametrize("family", FAMILIES)
def test_bos_stands_at_the_front_once_or_not_at_all(family: str) -> None:
    reader = tiny_model(family).reader
    ids = reader.prompt_ids(TEXT)
    expected = 0 if family in WITHOUT_BOS else 1
    assert ids.count(2) == expected
    assert reader.begins_with_bos == bool(expected)
    assert (ids[0] == 2) == bool(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_feature_edit_is_the_delta_of_a_plain_model(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trace of an ablation has the answer that plain PyTorch gives with the row taken out."""
    few = statistics.statistics_texts()[:24]  # of what controls are drawn from
    monkeypatch.setattr(statistics, "statistics_texts", lambda: few)
    folder = tiny_folder(family)
    saes = write_residual_saes(tmp_path / "saes", d_in=WIDTH, layers=LAYERS)
    if family in WITHOUT_BOS:
        for config in saes.glob("*/cfg.json"):
            config.write_text(config.read_text().replace('"prepend_bos": true', '"x": true'))
    session, cache = Session(), str(tmp_path / "cache")

    def inspected(*edits: str) -> Inspected:
        spec = ModelSpec(model=str(folder))
        request = InspectRequest(
            spec=spec, text=TEXT, cache_dir=cache, saes=(str(saes),), edits=edits
        )
        done = handle(request, QuietJob(), session)
        assert isinstance(done, Inspected)
        return done

    with Store.open(tmp_path / "cache") as store:
        before = store.get_trace(inspected().trace_id)
        rows = zip(
            before.features.layer,
            before.features.index,
            before.features.position,
            before.features.activation,
            strict=True,
        )
        layer, index, _, _ = max(
            (row for row in rows if row[0] == 1 and row[2] == before.text.last), key=lambda r: r[3]
        )
        after = store.get_trace(inspected(f"ablate L{layer}/{index} at all").trace_id)
        model = session.model(ModelSpec(model=str(folder)), QuietJob())
        sae = Instruments(model, store).saes((str(saes),), QuietJob())[0].get("resid", layer)
        direction = sae.directions([index])[0]

        plain = plain_model(folder)
        inside = [p for p, token in enumerate(after.text.tokens) if token.part == "text"]

        def ablate(_module: object, _inputs: object, output: Any) -> object:
            h = (output[0] if isinstance(output, tuple) else output).clone()
            h[0, inside] -= sae.encode(h[0, inside])[:, [index]] * direction
            return (h, *output[1:]) if isinstance(output, tuple) else h

        blocks = plain.get_submodule(SITE_TABLES[family].blocks)
        handle_of_hook = blocks[layer].register_forward_hook(ablate)
        with torch.no_grad():
            ids = torch.tensor([[token.id for token in after.text.tokens]])
            logits = plain(ids).logits[0, -1]
        handle_of_hook.remove()
    session.close_store()
    assert before.answer is not None and after.answer is not None and after.lens is not None
    assert after.answer.labels != before.answer.labels
    top = [p for at, p in zip(after.lens.layer, after.lens.probability, strict=True) if at == 3]
    expected = logits.softmax(dim=-1).topk(len(top)).values.tolist()
    assert top == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("site", ["resid", "attn", "mlp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_resuming_equals_a_full_run(family: str, site: HookSite) -> None:
    model = tiny_model(family)
    ids = model.reader.prompt_ids(TEXT)
    generator = torch.Generator().manual_seed(1)
    deltas = torch.randn(2, len(ids), model.d_model, generator=generator)
    clean = capture(model, ids)
    rows = rerun(model, clean.at("resid", 0), start=1, n_rows=2, hooks=adding(deltas, site, 1))

    def adding_to_all(delta: Tensor) -> Hook:
        return Hook(site, 1, lambda h: h + delta)

    for row, delta in enumerate(deltas):
        full = capture(model, ids, hooks=[adding_to_all(delta)])
        torch.testing.assert_close(rows.logits[row], full.logits, rtol=0, atol=1e-4)
        torch.testing.assert_close(
            rows.resid[LAYERS - 1][row], full.resid[-1, -1], rtol=0, atol=1e-4
        )
        assert not torch.allclose(full.logits, clean.logits, atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_writing_equals_transformers_own(family: str) -> None:
    model, plain = tiny_model(family), plain_model(tiny_folder(family))
    ids = model.reader.prompt_ids(TEXT)
    with torch.no_grad():
        whole = plain.generate(
            torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=None
        )
    expected = whole[0, len(ids) :].tolist()
    if model.reader.eos_id in expected:
        expected = expected[: expected.index(model.reader.eos_id)]
    assert generate(model, ids, new_tokens=12) == tuple(expected)
