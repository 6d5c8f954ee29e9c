"""SAEs of a local folder that are stored wider than they run: converted once, into the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support_models import LAYERS, WIDTH, tiny_folder
from support_saes import write_residual_saes

from emotui.core.engine import sae_formats
from emotui.core.engine.capture import QuietJob
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.saes import SaeSet, SaeWeights, load_saes
from emotui.core.errors import SaeError
from emotui.core.protocol import ModelSpec

PARTS = ("encoder", "encoder_bias", "decoder", "decoder_bias", "decoder_norm")


class _Noting(QuietJob):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def notice(self, line: str, /) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def narrow() -> LoadedModel:
    return load_model(ModelSpec(str(tiny_folder("llama")), dtype="bfloat16"), QuietJob())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_residual_saes(tmp_path / "mine", d_in=WIDTH, layers=LAYERS)


def _weights(saes: SaeSet, layer: int = 1) -> SaeWeights:
    return saes.weights_of(saes.get("resid", layer))


def _kept(cache: Path) -> list[Path]:
    return sorted((cache / "saes").rglob("*.safetensors"))


def _equal(one: SaeWeights, other: SaeWeights) -> bool:
    return all(torch.equal(getattr(one, part), getattr(other, part)) for part in PARTS)


def test_converted_once_and_the_same_to_the_bit(
    narrow: LoadedModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, job = tmp_path / "cache", _Noting()
    plain = _weights(load_saes(str(folder), narrow))
    opened = load_saes(str(folder), narrow, root=cache, job=job)
    assert len(opened.to_convert()) == LAYERS and not _kept(cache)
    (line,) = job.lines
    assert "converted once" in line and "iB in the cache in all" in line
    first = _weights(opened)
    assert _equal(first, plain)
    (path,) = _kept(cache)
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.bfloat16}
    assert len(opened.to_convert()) == LAYERS - 1
    read: list[Path] = []
    original = sae_formats.read_tensors

    def noted(path: Path, **named: Any) -> dict[str, torch.Tensor]:
        read.append(path)
        return original(path, **named)

    monkeypatch.setattr(sae_formats, "read_tensors", noted)
    again = _weights(load_saes(str(folder), narrow, root=cache))
    assert _equal(again, plain)
    assert read == [path]
    assert not list((cache / "saes").rglob(".new-*"))


def test_another_file_in_its_place_is_converted_again(
    narrow: LoadedModel, folder: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    before = _weights(load_saes(str(folder), narrow, root=cache))
    (source,) = (
        config.folder / sae_formats.WEIGHTS
        for config in (load_saes(str(folder), narrow).get("resid", 1).config,)
    )
    tensors = load_file(source)
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, source)
    after = _weights(load_saes(str(folder), narrow, root=cache))
    assert torch.equal(after.decoder, 2 * before.decoder)
    assert len(_kept(cache)) == 2


def test_a_damaged_copy_is_made_anew(narrow: LoadedModel, folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    plain = _weights(load_saes(str(folder), narrow, root=cache))
    kept = plain.decoder.clone()
    del plain
    (path,) = _kept(cache)
    path.unlink()
    path.write_bytes(b"nothing of the kind")
    assert torch.equal(_weights(load_saes(str(folder), narrow, root=cache)).decoder, kept)
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.bfloat16}


def test_without_room_it_is_converted_for_this_process(
    narrow: LoadedModel, folder: Path, tmp_path: Path
) -> None:
    blocked = tmp_path / "cache"
    blocked.mkdir()
    (blocked / "saes").write_text("a file where the folder would be")
    found = _weights(load_saes(str(folder), narrow, root=blocked))
    assert _equal(found, _weights(load_saes(str(folder), narrow)))


def test_a_run_as_wide_as_the_file_keeps_no_copy(folder: Path, tmp_path: Path) -> None:
    wide = load_model(ModelSpec(str(tiny_folder("llama")), dtype="float32"), QuietJob())
    job = _Noting()
    opened = load_saes(str(folder), wide, root=tmp_path / "cache", job=job)
    _weights(opened)
    assert not _kept(tmp_path / "cache") and not job.lines and not opened.to_convert()


def test_numbers_that_are_not_finite_are_refused_and_never_kept(
    narrow: LoadedModel, folder: Path, tmp_path: Path
) -> None:
    source = load_saes(str(folder), narrow).get("resid", 1).config.folder / sae_formats.WEIGHTS
    tensors = load_file(source)
    tensors["W_dec"][0, 0] = float("nan")
    save_file(tensors, source)
    with pytest.raises(SaeError, match="was refused"):
        _weights(load_saes(str(folder), narrow, root=tmp_path / "cache"))
    assert not _kept(tmp_path / "cache")
