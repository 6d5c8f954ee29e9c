"""Every study on pretend cards finds what it finds on the CPU; run by `test_cards.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from support_models import LAYERS
from support_on_cards import ON, cards, differences, few_texts, spec_on
from support_planted import planted_model, planted_texts
from support_saes import write_residual_saes, write_sae
from support_studies import run_here
from torch.utils._mode_utils import no_dispatch

from emotui.core.engine.capture import QuietJob
from emotui.core.engine.model import load_model

__all__ = ["cards", "few_texts"]

STUDIES: dict[str, dict[str, str]] = {
    "readout": {},
    "probes": {"random": "yes"},
    "patch": {"pairs": "6", "span": "1"},
    "knockout": {"span": "1", "sites": "resid,attn,mlp", "draws": "2"},
    "promote": {"strengths": "4", "draws": "2", "generations": "1"},
    "appraise": {"strengths": "6", "draws": "1", "generations": "1"},
    "phases": {"pairs": "8"},
    "features": {"least": "2", "shuffles": "20"},
    "trace": {"examples": "2"},
    "steer": {"shots": "1,2", "features": "2"},
    "terms": {"mode": "score,generate", "layers": "2"},
    "consistency": {},
}
"""By name, the options that make it small."""
TEXTS = {"steer": 24, "probes": 144, "knockout": 24, "terms": 8, "consistency": 4}


@pytest.fixture(scope="session")
def saes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    width = planted_model().d_model
    root = write_residual_saes(tmp_path_factory.mktemp("saes"), d_in=width, layers=LAYERS)
    for seed, hook in enumerate(("blocks.1.hook_attn_out", "blocks.3.hook_mlp_out"), start=20):
        write_sae(root / hook, d_in=width, hook=hook, seed=seed, k=None)
    return root


@pytest.mark.soak
@pytest.mark.parametrize("where", ON)
@pytest.mark.parametrize("study", STUDIES)
def test_a_study(study: str, where: str, saes: Path, tmp_path: Path) -> None:
    plain = planted_model()
    model = load_model(spec_on(where, Path(plain.spec.model)), QuietJob())
    model.context_length = plain.context_length = 512
    data = planted_texts(tmp_path / "texts.csv", TEXTS.get(study, 48))
    fields: dict[str, Any] = {"settings": STUDIES[study], "saes": (str(saes),)}
    mine = run_here(model, tmp_path / "card", study, data, **fields)
    with no_dispatch():
        theirs = run_here(plain, tmp_path / "cpu", study, data, **fields)
    assert differences(mine.result, theirs.result, within=1e-4) == []
    assert mine.run.device == model.device_name
    same = msgspec.structs.replace(mine.run, device=theirs.run.device)
    assert differences(same, theirs.run) == []
