"""`emotui inspect --verify`: text and JSON, exports that hold it, what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from support_command import emotui_bytes_here
from support_edits import random_probe
from support_models import LAYERS, WIDTH, tiny_folder, tiny_model
from support_saes import write_residual_saes
from support_traces import made_up_trace

from emotui.cache.store import Store
from emotui.commands import verify as command
from emotui.core.errors import Cancelled
from emotui.core.export.json import read_document
from emotui.core.export.schema import trace_schema
from emotui.core.private import private_words
from emotui.core.protocol import (
    InspectRequest,
    ModelSpec,
    Operation,
    VerifyRequest,
    WithoutRequest,
)

TEXT = "He shouted at me for no reason."
EDIT = "knock attn L1 mean"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("bench")
    model = tiny_model("llama")
    with Store.open(root / "cache") as store:
        probe = random_probe(model)
        store.put_probe(probe.id, probe.to_bytes(), probe.file.card)
    return root / "cache", write_residual_saes(root / "saes", d_in=WIDTH, layers=LAYERS)


def emotui(cache: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return emotui_bytes_here(*arguments, "--cache-dir", str(cache), cache_dir=cache)


def emotui_there(cache: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Start the program itself."""
    command = [sys.executable, "-m", "emotui", *arguments, "--cache-dir", str(cache)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, timeout=200, check=False, env=environment)


def inspect(
    bench: tuple[Path, Path],
    *arguments: str,
    run: Callable[..., subprocess.CompletedProcess[bytes]] = emotui,
) -> subprocess.CompletedProcess[bytes]:
    cache, saes = bench
    model = ("--model", str(tiny_folder("llama")), "--sae", str(saes))
    return run(cache, "inspect", TEXT, *model, *arguments)


def test_it_is_printed_and_in_every_export_from_then_on(bench: tuple[Path, Path]) -> None:
    plain = inspect(bench, "--do", EDIT, "--json")
    assert plain.returncode == 0, plain.stderr.decode()
    assert "verification" not in json.loads(plain.stdout)
    done = inspect(bench, "--do", EDIT, "--verify", "--verify-texts", "12", run=emotui_there)
    assert done.returncode == 0, done.stderr.decode()
    page = done.stdout.decode()
    assert f"{EDIT} at readout on 12 texts: situations of topics held out" in page
    assert "12 of 12 texts" in page and "95 % interval" in page
    assert "Repeating the edit on 12 other texts" in done.stderr.decode()
    again = inspect(bench, "--do", EDIT, "--verify", "--verify-texts", "12", "--json")
    assert again.stderr == b""
    document: dict[str, Any] = json.loads(again.stdout)
    jsonschema.validate(document, trace_schema())
    found = document["verification"]
    assert found["complete"] and len(found["others"]["id"]) == 12
    assert document["id"] == json.loads(plain.stdout)["id"]
    exported = emotui(bench[0], "export", document["id"], "--to", "json")
    assert json.loads(exported.stdout)["verification"] == found
    prose = emotui(bench[0], "export", document["id"], "--to", "md").stdout.decode()
    assert "## On other texts" in prose and "held out of training" in prose
    assert "here " in prose and "over 12 of 12 texts" in prose
    read = read_document(exported.stdout)
    assert read.verification is not None and read.verification.asked == 12
    old = {name: value for name, value in document.items() if name != "verification"}
    assert read_document(json.dumps(old).encode()).verification is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--verify",), "no edit to verify"),
        (("--do", "ablate L1/5 at 2-3", "--verify"), "cannot be repeated on other texts"),
        (("--do", EDIT, "--verify", "--verify-texts", "0"), "--verify-texts"),
    ],
)
def test_what_cannot_be_is_refused(
    bench: tuple[Path, Path], arguments: tuple[str, ...], words: str
) -> None:
    done = inspect(bench, *arguments)
    assert done.returncode == 2
    assert words in done.stderr.decode() and "Traceback" not in done.stderr.decode()


def test_ctrl_c_waits_until_what_is_done_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asked:
        waited = 0.0

        def result(self, timeout: float | None = None) -> None:
            Asked.waited = timeout or 0.0
            raise Cancelled("The work was cancelled.")

    class Client:
        def submit(self, operation: Operation) -> Asked:
            assert isinstance(operation, VerifyRequest) and operation.texts == 50
            return Asked()

    def interrupted(_pending: Asked) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "wait_for", interrupted)
    request = InspectRequest(ModelSpec("m"), TEXT, str(tmp_path), edits=(EDIT,))
    with Store.open(tmp_path / "cache") as store, pytest.raises(KeyboardInterrupt):
        client: Any = Client()
        command.verified(request, made_up_trace(), 50, store, client)
    assert Asked.waited == 2.0


def test_the_words_of_the_text_and_the_edits_are_private(tmp_path: Path) -> None:
    lines = ('patch resid L1 from "My secret." at readout',)
    request = InspectRequest(ModelSpec("m"), TEXT, str(tmp_path), edits=lines)
    for operation in (VerifyRequest(request), WithoutRequest(request)):
        words = private_words(operation)
        assert words is not None and {"shouted", "secret"} <= words
