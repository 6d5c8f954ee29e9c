"""Numbers that others published, where the real weights are on this machine.

Gemma-2-2B with Gemma Scope's residual SAE of layer 0, width 16k, average L0 105, on "The capital
of France is": candle-mi publishes 44.07 for feature 10492 and 16.87 for feature 8920 at the last
token. Nothing is fetched: `emotui inspect --model gemma-2-2b --sae RELEASE:ID` fetches them once.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from emotui.core.engine.capture import QuietJob
from emotui.core.engine.hub import snapshot_here
from emotui.core.engine.model_files import check_folder
from emotui.core.engine.operations import Session, handle
from emotui.core.errors import ModelError
from emotui.core.protocol import Inspected, InspectRequest, ModelSpec
from emotui.core.sae_directory import chosen

MODEL = "google/gemma-2-2b"
SAE = "gemma-scope-2b-pt-res:layer_0/width_16k/average_l0_105"
PROMPT = "The capital of France is"
PUBLISHED = {10492: 44.07, 8920: 16.87}


def _missing() -> str:
    """Return why the weights cannot be used; "" where they are all here."""
    folder = snapshot_here(MODEL)
    if folder is None:
        return f"{MODEL} is not in the Hugging Face cache"
    try:
        check_folder(folder)
    except ModelError as error:
        return f"{MODEL} is not whole: {error.what}"
    release, (sae,) = chosen(SAE)
    saes = snapshot_here(release.repository)
    if saes is None or not (saes / sae.path / "params.npz").is_file():
        return f"{SAE} is not in the Hugging Face cache"
    return ""


def test_the_sae_of_the_published_numbers_is_in_the_directory() -> None:
    release, (sae,) = chosen(SAE)
    assert (release.repository, release.readable) == ("google/gemma-scope-2b-pt-res", True)
    assert sae.path == "layer_0/width_16k/average_l0_105"


@pytest.mark.model
def test_gemma_scope_features_are_as_published(tmp_path: Path) -> None:
    if reason := _missing():
        pytest.skip(reason)
    session = Session()
    request = InspectRequest(
        spec=ModelSpec(MODEL, dtype="float32", device="cpu", offline=True),
        text=PROMPT,
        cache_dir=str(tmp_path / "cache"),
        template="raw",
        saes=(SAE,),
        metric="none",
    )
    done = handle(request, QuietJob(), session)
    assert isinstance(done, Inspected)
    trace = session.store(request.cache_dir).get_trace(done.trace_id)
    session.close_store()
    features = trace.features
    rows = zip(features.position, features.index, features.activation, strict=True)
    found = {index: value for position, index, value in rows if position == trace.text.last}
    assert trace.run.bos and trace.text.last == trace.text.readout == 5
    assert {index: found.get(index) for index in PUBLISHED} == pytest.approx(PUBLISHED, rel=5e-3)
