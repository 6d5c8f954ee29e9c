"""The way from a hub id to a trace, over a hub of real names and layouts on the loopback."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_hub import COMMIT, Hub, Repository, files_of, serving
from support_models import GEMMA_OF_26_LAYERS, tiny_folder

from emotui.core.engine.capture import QuietJob
from emotui.core.engine.hub import fetch
from emotui.core.engine.model import load_model
from emotui.core.engine.model_files import find_model, wanted_files
from emotui.core.engine.saes import load_saes
from emotui.core.errors import Cancelled, ModelError, SaeError
from emotui.core.protocol import ModelSpec
from emotui.core.sae_directory import directory
from emotui.core.sizes import in_bytes

MODEL, SAES = "google/gemma-2-2b", "google/gemma-scope-2b-pt-res"
DEFAULT = "gemma-scope-2b-pt-res-canonical"
TEXT = "Lily was sad because her toy was lost."
D_IN, WIDTH = 16, 48

_GUARD = """
import os, sys
def _guard(event, arguments):
    if event == "socket.getaddrinfo" or (event == "socket.connect" and arguments[0].family != 1):
        with open(os.environ["SOCKET_GUARD"], "a") as log:
            log.write(f"{event} {arguments[1:]!r}\\n")
        raise OSError("the guard forbids it")
sys.addaudithook(_guard)
"""


def npz_of(layer: int) -> bytes:
    """The bytes of a small Gemma Scope params.npz, saved as its authors save it."""
    random = np.random.default_rng(layer)
    arrays = {
        "W_enc": random.normal(0, 0.3, (D_IN, WIDTH)),
        "W_dec": random.normal(0, 0.3, (WIDTH, D_IN)),
        "b_enc": random.normal(0, 0.1, WIDTH),
        "b_dec": random.normal(0, 0.1, D_IN),
        "threshold": random.uniform(0, 0.2, WIDTH),
    }
    file = io.BytesIO()
    whole: dict[str, Any] = {name: array.astype(np.float32) for name, array in arrays.items()}
    np.savez(file, **whole)
    return file.getvalue()


def gemma_repository() -> Repository:
    """google/gemma-2-2b: two shards and an index, and files that nobody may fetch."""
    from safetensors import safe_open
    from safetensors.torch import save

    files = files_of(tiny_folder(GEMMA_OF_26_LAYERS))
    whole = tiny_folder(GEMMA_OF_26_LAYERS) / "model.safetensors"
    with safe_open(str(whole), framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in list(opened.keys())}
    del files["model.safetensors"]
    names = sorted(tensors)
    index: dict[str, str] = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        shard = f"model-{number:05}-of-00002.safetensors"
        files[shard] = save({name: tensors[name] for name in part}, {"format": "pt"})
        index |= dict.fromkeys(part, shard)
    files["model.safetensors.index.json"] = json.dumps(
        {"metadata": {}, "weight_map": index}
    ).encode()
    files["pytorch_model.bin"] = b"never fetched"
    files["README.md"] = b"# Gemma 2"
    files["original/model.safetensors"] = b"never fetched either"
    return Repository(files)


def sae_repository() -> Repository:
    paths = [one.path for one in directory()[DEFAULT].saes if "width_16k" in one.path]
    assert len(paths) == 26
    layers = {path: int(path.split("/")[0].removeprefix("layer_")) for path in paths}
    return Repository({f"{path}/params.npz": npz_of(layer) for path, layer in layers.items()})


@pytest.fixture
def hub() -> Iterator[Hub]:
    repositories = {
        MODEL: gemma_repository(),
        SAES: sae_repository(),
        "meta-llama/Llama-3.2-1B": Repository(files_of(tiny_folder("llama")), gated=True),
    }
    with serving(repositories) as served:
        yield served


def emotui(
    *arguments: str, root: Path, hub: Hub | None = None, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run the program as a user on a machine whose only hub is ours."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))
    }
    environment |= {
        "HF_HOME": str(root / "hf"),
        "EMOTUI_CACHE_DIR": str(root / "cache"),
        "HF_ENDPOINT": hub.endpoint if hub is not None else "http://127.0.0.1:9",
        **extra,
    }
    return subprocess.run(
        [sys.executable, "-m", "emotui", *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env=environment,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.xdist_group("hub")
def test_a_hub_model_and_its_default_saes_are_fetched_once(hub: Hub, tmp_path: Path) -> None:
    done = emotui(*("inspect", TEXT, "--model", "gemma-2-2b", "--json"), root=tmp_path, hub=hub)
    assert done.returncode == 0, done.stderr
    trace = json.loads(done.stdout)
    assert trace["run"]["model"] == "gemma-2-2b"
    assert trace["run"]["revision"] == COMMIT
    assert (trace["run"]["layers"], trace["run"]["bos"]) == (26, True)
    assert [one["sae"] for one in trace["saes"]] == [f"{DEFAULT}/resid.{n}" for n in range(26)]
    assert set(trace["features"]["layer"]) == set(range(26))
    _check_features(trace)

    fetched = hub.gets()
    assert len(fetched) == len(set(fetched)), "every file once"
    kinds = {name.removeprefix(f"{COMMIT}/") for name in fetched}
    assert {"config.json", "tokenizer.json", "model-00001-of-00002.safetensors"} <= kinds
    assert not [name for name in kinds if name.endswith((".bin", ".md")) or "original" in name]
    assert len([name for name in kinds if name.endswith("params.npz")]) == 26

    # The same again, offline and under a guard that forbids every socket: another text too.
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(_GUARD)
    log = tmp_path / "sockets"
    count = len(hub.requests)
    paths = os.pathsep.join(filter(None, (str(guard), os.environ.get("PYTHONPATH"))))
    for text in (TEXT, "He shouted at me for no reason."):
        again = emotui(
            *("inspect", text, "--model", "gemma-2-2b", "--json", "--offline"),
            root=tmp_path,
            PYTHONPATH=paths,
            SOCKET_GUARD=str(log),
        )
        assert again.returncode == 0, again.stderr
        assert len(set(json.loads(again.stdout)["features"]["layer"])) == 26
        if text == TEXT:
            assert again.stdout == done.stdout
    assert not log.exists(), log.read_text()
    assert len(hub.requests) == count


def _check_features(trace: dict[str, Any]) -> None:
    """The features at the readout of layer 3, by numpy from the npz and plain transformers."""
    import torch
    from support_models import plain_model

    ids = [token["id"] for token in trace["text"]["tokens"]]
    plain = plain_model(tiny_folder(GEMMA_OF_26_LAYERS))
    kept: list[Any] = []
    plain.model.layers[3].register_forward_hook(lambda _m, _i, output: kept.append(output))
    with torch.no_grad():
        plain(torch.tensor([ids]))
    h = (kept[0][0] if isinstance(kept[0], tuple) else kept[0])[0, -1].numpy()
    with np.load(io.BytesIO(npz_of(3))) as weights:
        before = h @ weights["W_enc"] + weights["b_enc"]
        expected = np.where(before > weights["threshold"], before, 0)
    rows = zip(
        *(trace["features"][name] for name in ("layer", "position", "index", "activation")),
        strict=True,
    )
    found = {i: value for at, p, i, value in rows if (at, p) == (3, trace["text"]["readout"])}
    assert found == pytest.approx(
        {int(i): float(expected[i]) for i in np.flatnonzero(expected > 0)}, rel=1e-3, abs=1e-4
    )


def test_a_gated_model_names_the_licence_page_and_the_token(hub: Hub, tmp_path: Path) -> None:
    arguments = ("inspect", TEXT, "--model", "llama-3.2-1b")
    done = emotui(*arguments, root=tmp_path, hub=hub)
    assert done.returncode == 1
    assert "meta-llama/Llama-3.2-1B is gated" in done.stderr
    assert "https://huggingface.co/meta-llama/Llama-3.2-1B" in done.stderr
    assert "no token: HF_TOKEN is not set" in done.stderr
    secret = "hf_" + "x" * 34
    done = emotui(*arguments, root=tmp_path, hub=hub, HF_TOKEN=secret)
    assert done.returncode == 1
    assert "the token in HF_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr
    assert secret not in done.stderr
    assert hub.requests[-1][2] == secret, "the token was tried"


@pytest.fixture
def in_process(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return hub


class Recording(QuietJob):
    def __init__(self, *, cancel_at: int | None = None) -> None:
        self.seen: list[tuple[str, int, int]] = []
        self.cancel_at = cancel_at

    def progress(self, phase: str, done: int = 0, total: int = 0, /) -> None:
        self.seen.append((phase, done, total))

    def check(self) -> None:
        if self.cancel_at is not None and self.seen and self.seen[-1][1] >= self.cancel_at:
            raise Cancelled("The work was cancelled.")


def test_progress_tells_bytes_and_time_left(
    in_process: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4096)
    job = Recording()
    found = find_model(ModelSpec("gemma-2-2b"), job)
    assert (found.hub_id, found.commit) == (MODEL, COMMIT)
    files = in_process.repositories[MODEL].files
    total = sum(len(files[name]) for name in wanted_files(MODEL, list(files)))
    assert job.seen[0][0] == f"asking the hub for {MODEL}"
    assert job.seen[1] == (f"downloading {MODEL}: {in_bytes(total)}", 0, 100)
    counts = [done for _, done, _ in job.seen[1:]]
    assert counts == sorted(counts)
    assert counts[-1] == 100
    assert len(set(counts)) > 20
    pattern = re.compile(rf"downloading {MODEL}: [\d.]+ \w+ of {in_bytes(total)}, \d+ s left")
    assert [phase for phase, _, _ in job.seen if pattern.fullmatch(phase)]
    assert job.seen[-1][0].endswith(f"{in_bytes(total)} of {in_bytes(total)}")


def test_what_is_here_is_not_asked_for(in_process: Hub) -> None:
    find_model(ModelSpec(MODEL))
    count = len(in_process.requests)
    assert find_model(ModelSpec("gemma-2-2b")).commit == COMMIT
    assert find_model(ModelSpec(MODEL, offline=True)).commit == COMMIT
    assert find_model(ModelSpec(MODEL, revision=COMMIT)).commit == COMMIT
    assert len(in_process.requests) == count


def test_cancel_inside_a_download_leaves_nothing_that_looks_whole(
    in_process: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4096)
    with pytest.raises(Cancelled):
        find_model(ModelSpec(MODEL), Recording(cancel_at=60))
    with pytest.raises(ModelError, match="not on this machine"):
        find_model(ModelSpec(MODEL, offline=True))
    assert find_model(ModelSpec(MODEL)).commit == COMMIT


def test_a_connection_that_breaks_once_is_taken_up_again(in_process: Hub) -> None:
    repository = in_process.repositories[MODEL]
    repository.breaks, repository.breaks_left = "model-00002-of-00002.safetensors", 1
    found = find_model(ModelSpec(MODEL))
    assert (found.folder / repository.breaks).read_bytes() == repository.files[repository.breaks]
    assert in_process.gets().count(f"{COMMIT}/{repository.breaks}") == 2


def test_a_download_that_breaks_off_says_so_and_goes_on_where_files_are_whole(
    in_process: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)  # between the library's attempts
    repository = in_process.repositories[MODEL]
    repository.breaks, repository.breaks_left = "model-00002-of-00002.safetensors", -1
    with pytest.raises(ModelError) as caught:
        find_model(ModelSpec(MODEL))
    assert re.search(rf"download of {MODEL} broke off at .* of ", caught.value.what)
    assert "again" in caught.value.todo
    assert "XET" not in caught.value.todo, "it came over plain HTTP"
    # Nothing takes the part for the whole.
    with pytest.raises(ModelError):
        find_model(ModelSpec(MODEL, offline=True))
    before = len(in_process.gets())
    repository.breaks_left = 0
    assert find_model(ModelSpec(MODEL)).commit == COMMIT
    assert in_process.gets()[before:] == [f"{COMMIT}/{repository.breaks}"]


def test_unknown_names_come_with_those_that_are_near(in_process: Hub) -> None:
    for name, near in (("gema-2-2b", "gemma-2-2b"), ("google/gemma-2-2", "google/gemma-2-2b")):
        with pytest.raises(ModelError) as caught:
            find_model(ModelSpec(name))
        assert "There is no model called" in caught.value.what
        assert near in caught.value.todo
        assert "no token" in caught.value.why


def test_an_unknown_revision(in_process: Hub) -> None:
    with pytest.raises(ModelError, match="no revision 'nope'"):
        find_model(ModelSpec(MODEL, revision="nope"))


def test_no_connection(in_process: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError) as caught:
        find_model(ModelSpec(MODEL))
    assert "did not answer" in caught.value.why
    assert "HF_ENDPOINT" in caught.value.todo


def test_a_repository_of_pickles_is_refused_before_a_byte_is_fetched(in_process: Hub) -> None:
    files = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    in_process.repositories["someone/pickles"] = Repository(files)
    in_process.repositories["someone/gguf"] = Repository({"model.gguf": b"x"})
    with pytest.raises(ModelError, match="pickle"):
        find_model(ModelSpec("someone/pickles"))
    with pytest.raises(ModelError, match="no model that can be read"):
        find_model(ModelSpec("someone/gguf"))
    assert in_process.gets() == []


def test_a_disk_without_room(in_process: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _path: Usage)
    with pytest.raises(ModelError) as caught:
        fetch(MODEL, revision=None, choose=lambda names: list(names), job=QuietJob())
    assert "1000 bytes free" in caught.value.why
    assert in_process.gets() == []


def test_a_token_file_is_named_and_tried(
    in_process: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hf_" + "y" * 34
    (tmp_path / "token").write_text(secret)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(ModelError) as caught:
        find_model(ModelSpec("meta-llama/Llama-3.2-1B"))
    assert f"the token in the file {tmp_path / 'token'}" in caught.value.why
    assert secret not in str(caught.value)
    assert in_process.requests[-1][2] == secret


def test_saes_that_do_not_arrive_are_no_saes(
    in_process: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    model = load_model(ModelSpec(MODEL), QuietJob())
    source = f"{DEFAULT}:layer_1/width_16k/canonical"
    repository = in_process.repositories[SAES]
    (file,) = (one.path for one in directory()[DEFAULT].saes if one.id == source.split(":")[1])
    repository.breaks, repository.breaks_left = f"{file}/params.npz", -1
    with pytest.raises(SaeError, match=f"download of {SAES} broke off"):
        load_saes(source, model, root=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("cfg.json"))
    repository.breaks_left = 0
    assert load_saes(source, model, root=tmp_path / "cache").places == [("resid", 1)]
    gone = f"{DEFAULT}:layer_2/width_16k/canonical"
    for name in list(repository.files):
        if name.startswith("layer_2/"):
            del repository.files[name]
    with pytest.raises(SaeError, match="has no layer_2/"):
        load_saes(gone, model, root=tmp_path / "cache")
