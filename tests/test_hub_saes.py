"""SAEs from the hub: the default that cannot be had, those of another model, room for copies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from support_hub import Hub, Repository, files_of, serving
from support_models import GEMMA_OF_26_LAYERS, tiny_folder
from support_saes import write_residual_saes
from test_hub import DEFAULT, MODEL, SAES, gemma_repository, sae_repository
from test_hub_xet import Watching

from emotui.core.engine.hub import SAES as SAE_KIND
from emotui.core.engine.hub import check_room
from emotui.core.engine.model import load_model
from emotui.core.engine.operations import Session, handle
from emotui.core.engine.saes import load_saes
from emotui.core.errors import SaeError
from emotui.core.protocol import Inspected, InspectRequest, LabelsFitRequest, ModelSpec
from emotui.core.sae_directory import DEFAULTS
from emotui.core.sizes import in_bytes

TEXT = "Lily was sad because her toy was lost."
GPT2, GPT2_SAES = "openai-community/gpt2", "jbloom/GPT2-Small-SAEs-Reformatted"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    repositories = {
        MODEL: gemma_repository(),
        SAES: sae_repository(),
        GPT2: Repository(files_of(tiny_folder("gpt2"))),
    }
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with serving(repositories) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


def request_of(tmp_path: Path, *saes: str, text: str = TEXT, model: str = "gpt2") -> InspectRequest:
    return InspectRequest(ModelSpec(model), text, str(tmp_path / "cache"), saes=saes)


def test_a_default_that_cannot_be_had_is_told_and_left_out(hub: Hub, tmp_path: Path) -> None:
    session, job, default = Session(), Watching(), DEFAULTS["gpt2"]
    done = handle(request_of(tmp_path, default), job, session)
    assert isinstance(done, Inspected)
    trace = session.store(str(tmp_path / "cache")).get_trace(done.trace_id)
    assert (trace.saes, trace.features.index) == ((), ())
    (told,) = [line for line in job.notices if "default SAEs" in line]
    assert "default SAEs of gpt2 could not be had" in told
    assert f"There is no SAE repository called '{GPT2_SAES}'" in told
    assert "--sae none" in told
    # The trace is the one without SAEs, so that it is not found when they can be had.
    without = handle(request_of(tmp_path), job, session)
    assert isinstance(without, Inspected) and without.cached
    assert without.trace_id == done.trace_id
    asked = len(hub.requests)
    handle(request_of(tmp_path, default, text="He shouted at me."), job, session)
    assert len(hub.requests) == asked, "asked for once in a session"


def test_saes_that_were_asked_for_are_an_error(hub: Hub, tmp_path: Path) -> None:
    session, job = Session(), Watching()
    named = f"{DEFAULTS['gpt2'].partition(':')[0]}:blocks.1.hook_resid_pre"
    with pytest.raises(SaeError) as caught:
        handle(request_of(tmp_path, named), job, session)
    assert caught.value.what == f"There is no SAE repository called '{GPT2_SAES}'."
    assert "--sae none" in caught.value.todo
    assert "gemma-2-2b," not in caught.value.todo, "no list of models"
    # Labels are of SAEs: there a default is needed.
    labels = LabelsFitRequest(
        ModelSpec("gpt2"), str(tmp_path / "cache"), saes=(DEFAULTS["gpt2"],), data=None
    )
    with pytest.raises(SaeError, match="no SAE repository"):
        handle(labels, job, session)


def local_copy(tmp_path: Path, family: str, name: str) -> Path:
    return Path(shutil.copytree(tiny_folder(family), tmp_path / name))


def test_of_a_release_one_file_shows_that_it_is_another_models(hub: Hub, tmp_path: Path) -> None:
    model = load_model(ModelSpec(str(local_copy(tmp_path, "llama", "mine"))), Watching())
    with pytest.raises(SaeError) as caught:
        load_saes(DEFAULT, model, root=tmp_path / "cache", job=Watching())
    assert len(hub.gets()) == 1
    assert caught.value.what == f"The SAEs of {DEFAULT} do not fit the model."
    assert "trained on gemma-2-2b" in caught.value.why
    assert "width 16" in caught.value.why and "48" in caught.value.why
    assert str(tmp_path) not in str(caught.value)


def test_of_a_release_that_fits_a_folder_all_are_fetched(hub: Hub, tmp_path: Path) -> None:
    model = load_model(ModelSpec(str(local_copy(tmp_path, GEMMA_OF_26_LAYERS, "mine"))), Watching())
    job = Watching()
    saes = load_saes(f"{DEFAULT}:layer_*/width_16k/canonical", model, root=tmp_path / "c", job=job)
    assert len(saes) == 26
    assert len(hub.gets()) == 26
    (told,) = [line for line in job.notices if "trained on" in line]
    assert "say that they were trained on gemma-2-2b" in told
    assert "the folder mine" in told


def test_saes_of_a_folder_that_name_another_model_are_told(tmp_path: Path) -> None:
    folder = local_copy(tmp_path, "llama", "my-llama")
    saes = write_residual_saes(tmp_path / "saes", d_in=48, layers=2)

    def told(trained_on: str) -> list[str]:
        for path in saes.rglob("cfg.json"):
            config = json.loads(path.read_text())
            config["metadata"] = {**config.get("metadata", {}), "model_name": trained_on}
            path.write_text(json.dumps(config))
        job = Watching()
        load_saes(str(saes), load_model(ModelSpec(str(folder)), Watching()), root=None, job=job)
        return [line for line in job.notices if "trained on" in line]

    (line,) = told("gpt2-small")
    assert "trained on gpt2-small" in line and "my-llama" in line
    assert told("someone/My-Llama") == []
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "_name_or_path": "org/llama-tiny"}))
    assert told("llama-tiny-instruct") == []


def test_the_copies_are_told_and_need_room(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(ModelSpec(MODEL), Watching())
    job, cache = Watching(), tmp_path / "cache"
    source = f"{DEFAULT}:layer_1/width_16k/canonical"
    (size,) = {len(content) for content in hub.repositories[SAES].files.values()}
    real = shutil.disk_usage
    asked: list[Path] = []

    def usage(place: Path) -> object:
        asked.append(Path(place))
        return real(place)

    monkeypatch.setattr("shutil.disk_usage", usage)
    load_saes(source, model, root=cache, job=job)
    assert (
        f"Downloading {SAES}: {in_bytes(size)}, and {in_bytes(size)} for converted copies."
    ) in job.notices
    assert {tmp_path / "hub", cache / "saes"} <= set(asked)
    copied = sum(path.stat().st_size for path in (cache / "saes").rglob("*.safetensors"))
    assert copied == pytest.approx(size, rel=0.2), "what was told is what was written"

    # Downloaded before, and to be converted: the cache alone needs room.
    shutil.rmtree(cache)
    monkeypatch.setattr("shutil.disk_usage", lambda _place: SimpleNamespace(free=1000))
    with pytest.raises(SaeError, match="no room") as caught:
        load_saes(source, model, root=cache, job=job)
    assert str(cache) in caught.value.why
    assert "--cache-dir" in caught.value.todo


def test_folders_on_one_disk_need_room_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _place: SimpleNamespace(free=10 * 2**30))
    check_room("x", {tmp_path / "a": 6 * 2**30}, SAE_KIND)
    with pytest.raises(SaeError) as caught:
        check_room("x", {tmp_path / "a": 6 * 2**30, tmp_path / "b": 6 * 2**30}, SAE_KIND)
    assert "It needs 12 GiB with the converted copies" in caught.value.why
