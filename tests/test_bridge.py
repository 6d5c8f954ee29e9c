"""TransformerLens's bridge as second backend: equal to the table, and for what it lacks."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support_models import LAYERS, WIDTH, copied, plain_model, tiny_folder, tiny_model
from support_saes import write_residual_saes

from emotui.core.engine import bridge
from emotui.core.engine.bridge import BridgeSites, bridged_sites
from emotui.core.engine.capture import Hook, QuietJob, capture
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.operations import Session, handle
from emotui.core.engine.rerun import adding, rerun
from emotui.core.engine.sites import SITE_TABLES, HookSite, Sites
from emotui.core.engine.speak import generate
from emotui.core.errors import ModelError
from emotui.core.protocol import (
    Diagnosed,
    DoctorRequest,
    Inspected,
    InspectRequest,
    ModelSpec,
)

TEXT = "My dog died last week, and the house is very quiet now. It was because I was sad."
STRANGER = "stablelm"
"""An architecture that the site table does not know."""
SITES: tuple[HookSite, ...] = ("resid", "attn", "mlp", "z")


def _twin(family: str) -> LoadedModel:
    """The model of a family through the bridge although the table knows it."""
    model = load_model(ModelSpec(model=str(tiny_folder(family))), QuietJob())
    return dataclasses.replace(model, sites=bridged_sites(model.hf, model.folder))


def _half_and(noise: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    return h * 0.5 + noise


@pytest.mark.parametrize("family", sorted(set(SITE_TABLES) - {"gemma3"}))
def test_the_two_backends_agree_on_sites_edits_and_writing(family: str) -> None:
    ours, theirs = tiny_model(family), _twin(family)
    ids = ours.reader.prompt_ids(TEXT)
    generator = torch.Generator().manual_seed(3)
    for site in (None, *SITES):
        hooks = []
        if site is not None:
            noise = torch.randn(1, generator=generator)
            hooks = [Hook(site, 2, partial(_half_and, noise))]
        one = capture(ours, ids, all_sites=True, z=True, hooks=hooks)
        other = capture(theirs, ids, all_sites=True, z=True, hooks=hooks)
        for name in ("resid", "attn", "mlp", "z", "logits"):
            torch.testing.assert_close(
                getattr(one, name), getattr(other, name), rtol=1e-5, atol=2e-5
            )
    resid = capture(ours, ids).at("resid", -1)
    torch.testing.assert_close(
        ours.sites.logits_of(resid), theirs.sites.logits_of(resid), rtol=1e-5, atol=1e-5
    )
    assert generate(ours, ids, new_tokens=6) == generate(theirs, ids, new_tokens=6)


@pytest.fixture(scope="module")
def stranger() -> LoadedModel:
    assert STRANGER not in SITE_TABLES
    return load_model(ModelSpec(model=str(tiny_folder(STRANGER))), QuietJob())


def test_an_architecture_that_the_table_lacks_is_read_by_the_bridge(stranger: LoadedModel) -> None:
    """Against plain hooks on modules that this test names by hand."""
    assert isinstance(stranger.sites, BridgeSites)
    assert (stranger.n_layers, stranger.attention) == (LAYERS, "eager")
    ids = stranger.reader.prompt_ids(TEXT)
    kept = capture(stranger, ids, all_sites=True, z=True)
    plain = plain_model(tiny_folder(STRANGER))
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: object, _inputs: object, output: Any) -> None:
            seen[name] = (output[0] if isinstance(output, tuple) else output)[0]

        return hook

    for layer, block in enumerate(plain.model.layers):
        block.register_forward_hook(keep(f"resid.{layer}"))
        block.self_attn.register_forward_hook(keep(f"attn.{layer}"))
        block.mlp.register_forward_hook(keep(f"mlp.{layer}"))
    with torch.no_grad():
        logits = plain(torch.tensor([ids])).logits[0, -1]
    for layer in range(LAYERS):
        for site in ("resid", "attn", "mlp"):
            torch.testing.assert_close(
                kept.at(site, layer),
                seen[f"{site}.{layer}"],
                rtol=0,
                atol=1e-5,
            )
    torch.testing.assert_close(kept.logits, logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        stranger.sites.logits_of(kept.resid[-1, -1]), logits, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("site", ["resid", "attn", "mlp"])
def test_resuming_works_through_the_bridge(stranger: LoadedModel, site: HookSite) -> None:
    ids = stranger.reader.prompt_ids(TEXT)
    clean = capture(stranger, ids)
    deltas = torch.randn(2, len(ids), WIDTH, generator=torch.Generator().manual_seed(5))
    rows = rerun(stranger, clean.at("resid", 0), start=1, n_rows=2, hooks=adding(deltas, site, 1))
    for row, delta in enumerate(deltas):
        one = Hook(site, 1, partial(torch.add, delta))
        full = capture(stranger, ids, hooks=[one])
        torch.testing.assert_close(rows.logits[row], full.logits, rtol=0, atol=1e-4)
        assert not torch.allclose(full.logits, clean.logits, atol=1e-2)
    again = capture(stranger, ids)
    assert torch.equal(again.logits, clean.logits), "nothing of it stays"


def test_a_stranger_is_inspected_with_features_and_writes(
    stranger: LoadedModel, tmp_path: Path
) -> None:
    saes = write_residual_saes(tmp_path / "saes", d_in=WIDTH, layers=LAYERS)
    session = Session()
    done = handle(
        InspectRequest(
            spec=ModelSpec(model=str(tiny_folder(STRANGER))),
            text=TEXT,
            cache_dir=str(tmp_path / "cache"),
            saes=(str(saes),),
        ),
        QuietJob(),
        session,
    )
    assert isinstance(done, Inspected)
    trace = session.store(str(tmp_path / "cache")).get_trace(done.trace_id)
    assert set(trace.features.layer) == set(range(LAYERS))
    assert trace.run.architecture == STRANGER
    session.close_store()
    ids = stranger.reader.prompt_ids(TEXT)
    with torch.no_grad():
        whole = plain_model(tiny_folder(STRANGER)).generate(
            torch.tensor([ids]), max_new_tokens=8, do_sample=False, eos_token_id=None
        )
    written = generate(stranger, ids, new_tokens=8)
    assert written == tuple(whole[0, len(ids) :].tolist())[: len(written)]


def test_doctor_tells_which_backend_reads_the_model(tmp_path: Path) -> None:
    outcome = handle(
        DoctorRequest(spec=ModelSpec(model=str(tiny_folder(STRANGER)))), QuietJob(), Session()
    )
    assert isinstance(outcome, Diagnosed)
    facts = {name: (value, good) for name, value, good in outcome.facts}
    assert "bridge" in facts["sites"][0]
    assert facts["residual = input + attn + mlp"][1]


def test_doctor_notices_a_table_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison is no formality: with the norm left out of the sum it must say so."""
    model = load_model(ModelSpec(model=str(tiny_folder("gemma2"))), QuietJob())
    wrong = dataclasses.replace(SITE_TABLES["gemma2"], mlp="mlp")
    model.sites = Sites(model.hf, wrong)
    gaps = bridge.compare(model, model.reader.prompt_ids(TEXT), model.folder, QuietJob())
    assert gaps["mlp"] > 0.1
    assert max(gaps[site] for site in ("resid", "attn", "z", "logits")) < 1e-5


def test_nothing_is_ever_installed_for_a_bridge(monkeypatch: pytest.MonkeyPatch) -> None:
    """TransformerLens 3.9 runs `pip install torchvision` where it meets a model with eyes."""
    started: list[object] = []
    monkeypatch.setattr("subprocess.Popen", lambda *command, **_named: started.append(command))
    model = load_model(ModelSpec(model=str(tiny_folder("gemma3"))), QuietJob())
    ids = model.reader.prompt_ids(TEXT)
    with pytest.raises(ModelError, match="images or sound"):
        bridge.compare(model, ids, model.folder, QuietJob())
    assert isinstance(model.sites, Sites) and not isinstance(model.sites, BridgeSites)
    with bridge.without_installing(), pytest.raises(RuntimeError, match="installs nothing"):
        subprocess.check_call(["pip", "install", "torchvision"])
    assert started == []
    outcome = handle(
        DoctorRequest(spec=ModelSpec(model=str(tiny_folder("gemma3")))), QuietJob(), Session()
    )
    assert isinstance(outcome, Diagnosed)
    facts = {name: (value, good) for name, value, good in outcome.facts}
    assert "not compared" in facts["against TransformerLens"][0]
    assert started == []


def test_a_model_whose_parts_do_not_add_up_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bridge._HOOKS, "mlp", "mlp.hook_in")
    with pytest.raises(ModelError, match="do not add up"):
        load_model(ModelSpec(model=str(tiny_folder(STRANGER))), QuietJob())
    monkeypatch.setitem(bridge._HOOKS, "mlp", "no_such_hook")
    with pytest.raises(ModelError, match="no_such_hook"):
        load_model(ModelSpec(model=str(tiny_folder(STRANGER))), QuietJob())


def test_an_architecture_that_nobody_knows(tmp_path: Path) -> None:
    folder = copied(tiny_folder("llama"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "nonesuch", "architectures": ["NonesuchForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        load_model(ModelSpec(model=str(folder)), QuietJob())
    assert "nonesuch" in caught.value.what
    assert "gemma2" in caught.value.todo
