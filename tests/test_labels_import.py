"""Explanations of Neuronpedia's: bulk files, hostile lines, the download, and the command line."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support_command import emotui_here
from support_models import LAYERS, WIDTH, tiny_folder
from support_saes import write_residual_saes

from emotui.cache import labels as shelf
from emotui.cache.labels import Explanation
from emotui.cache.neuronpedia import download, fetched, import_files, own_name
from emotui.core.errors import SaeError

ID = "gemma-2-2b/20-gemmascope-res-16k"


def row(index: object, text: object = "words about anger", **more: object) -> dict[str, object]:
    return {
        "modelId": "gemma-2-2b",
        "layer": "20-gemmascope-res-16k",
        "index": index,
        "description": text,
        "explanationModelName": "gpt-4o-mini",
        "typeName": "oai_token-act-pair",
        "embedding": [0.5] * 8,
        **more,
    }


def batch(path: Path, *rows: object, zipped: bool = True) -> Path:
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in rows]
    content = b"\n".join(lines) + b"\n"
    path.write_bytes(gzip.compress(content) if zipped else content)
    return path


def explained(root: Path, name: str = ID) -> dict[int, Explanation]:
    return shelf.read_explanations(shelf.explained_path(root, neuronpedia=name), "")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_batch_is_imported_with_its_origin(tmp_path: Path, zipped: bool) -> None:
    file = batch(tmp_path / "batch-0.jsonl.gz", row("7"), row(8, "commas"), zipped=zipped)
    done = import_files(tmp_path / "cache", [file], today="2026-01-02")
    assert done.features == {ID: 2} and not done.skipped
    found = explained(tmp_path / "cache")
    assert found[7] == Explanation("words about anger", "neuronpedia gpt-4o-mini 2026-01-02")
    listed = shelf.label_files(tmp_path / "cache")
    assert [(one.rows, one.meta["kind"]) for one in listed] == [(2, "explained")]
    modes = [p.stat().st_mode & 0o777 for p in (tmp_path / "cache").rglob("*.sqlite")]
    assert modes == [0o600]


def test_later_batches_add_and_the_first_explanation_of_a_feature_counts(tmp_path: Path) -> None:
    first = batch(tmp_path / "a", row(1, "one"), row(1, "another"))
    second = batch(tmp_path / "b", row(2, "two"))
    done = import_files(tmp_path / "cache", [first])
    assert done.skipped == {"a further explanation of the same feature": 1}
    import_files(tmp_path / "cache", [second])
    assert {n: e.text for n, e in explained(tmp_path / "cache").items()} == {1: "one", 2: "two"}


def test_hostile_lines_are_left_out_and_texts_are_cleaned(tmp_path: Path) -> None:
    file = batch(
        tmp_path / "batch-0.jsonl.gz",
        b"{not json",
        b"\xff\xfe\x00",
        b'["a list"]',
        b"x" * 3_000_000,
        row(1, "\x1b]0;title\x07red \u202eback\n wards [bold]"),
        row(-3),
        row("1e5"),
        row(True),
        row(4, 17),
        row(5, "   "),
        row(6, "long " * 1000),
        row(9, modelId="../../etc", layer="passwd"),
        row(10, modelId="..", layer="20-gemmascope-res-16k"),
    )
    root = tmp_path / "cache"
    done = import_files(root, [file])
    found = explained(root)
    assert set(found) == {1, 6}
    assert found[1].text == "␛]0;title␇red ·back wards [bold]"
    assert len(found[6].text) <= shelf.MAX_LABEL
    assert done.skipped["longer than a megabyte"] == 1
    assert done.skipped["no JSON of an explanation"] >= 4
    outside = {p for p in tmp_path.rglob("*.sqlite") if shelf.FOLDER not in p.parts}
    assert not outside and not (tmp_path / "etc").exists()


def test_files_that_hold_nothing_are_said(tmp_path: Path) -> None:
    with pytest.raises(SaeError, match="holds no explanation"):
        import_files(tmp_path, [batch(tmp_path / "a", b"not", b"json")])
    with pytest.raises(SaeError, match="could not be read"):
        import_files(tmp_path, [tmp_path / "absent.jsonl.gz"])
    cut = batch(tmp_path / "cut", *(row(n) for n in range(500)))
    cut.write_bytes(cut.read_bytes()[:-200])
    with pytest.raises(SaeError, match="could not be read"):
        import_files(tmp_path, [cut])


def test_ids_tell_site_and_layer() -> None:
    assert own_name("gemma-2-2b/20-gemmascope-res-16k") == "resid.20"
    assert own_name("gpt2-small/6-res-jb") == "resid_pre.6"
    assert own_name("gemma-2-2b/3-gemmascope-mlp-16k") == "mlp.3"
    with pytest.raises(SaeError, match="does not say"):
        own_name("gemma-2-2b/clt-hp")


# --- the download ------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What is served by path, and the paths that were asked for."""
    state: dict[str, Any] = {"files": {}, "asked": [], "cut": set()}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_arguments: object) -> None:
            return None

        def do_GET(self) -> None:
            state["asked"].append(self.path)
            content = state["files"].get(self.path)
            self.send_response(404 if content is None else 200)
            content = b"" if content is None else content
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if self.path in state["cut"] else content)

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    monkeypatch.setenv("EMOTUI_NEURONPEDIA", f"http://127.0.0.1:{web.server_address[1]}/v1")
    yield state
    web.shutdown()
    web.server_close()
    thread.join()


def _serve(state: dict[str, Any], tmp_path: Path, name: str, batches: int) -> None:
    for number in range(batches):
        file = batch(tmp_path / "served", *(row(64 * number + n) for n in range(64)))
        path = f"/v1/{name}/explanations/batch-{number}.jsonl.gz"
        state["files"][path] = file.read_bytes()


def test_batches_are_downloaded_once_each_and_never_a_feature_alone(
    server: dict[str, Any], tmp_path: Path
) -> None:
    _serve(server, tmp_path, ID, 3)
    said: list[str] = []
    with fetched([ID], progress=said.append) as paths:
        assert len(paths) == 3
        done = import_files(tmp_path / "cache", paths)
    assert done.features == {ID: 192} and len(explained(tmp_path / "cache")) == 192
    assert len(server["asked"]) == 4 and len(set(server["asked"])) == 4
    assert said[0].endswith("batch 0")
    assert not any(path.exists() for path in paths)


def test_what_is_unknown_or_breaks_off_is_said(server: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SaeError, match="has no explanations"):
        download("gemma-2-2b/99-none", tmp_path, progress=lambda _: None)
    with pytest.raises(SaeError, match="no id of an SAE"):
        download("https://elsewhere", tmp_path, progress=lambda _: None)
    _serve(server, tmp_path, ID, 1)
    server["cut"].add(f"/v1/{ID}/explanations/batch-0.jsonl.gz")
    with pytest.raises(SaeError, match="could not be fetched"):
        download(ID, tmp_path, progress=lambda _: None)


# --- the command line ---------------------------------------------------------------------------


def emotui(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "emotui", *arguments, "--cache-dir", str(cache)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_import_fit_list_show_and_inspect_from_the_command_line(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    model = str(tiny_folder("llama"))
    saes = str(write_residual_saes(tmp_path / "saes", d_in=WIDTH, layers=LAYERS))
    rows = [row(n, "words about anger", layer="2-mine-res-64") for n in range(64)]
    file = batch(tmp_path / "batch-0.jsonl.gz", *rows, b"broken")
    done = emotui_here("labels", "import", str(file), "--sae", saes, "--json", cache_dir=cache)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["features"] == {"gemma-2-2b/2-mine-res-64": 64}
    assert "1 lines left out" in done.stderr
    fit = emotui("labels", "fit", "--model", model, "--sae", saes, "--json", cache=cache)
    assert fit.returncode == 0, fit.stderr
    source = json.loads(fit.stdout)["sources"][0]
    assert source["source"] == "saes" and source["features"] == 64 * LAYERS
    listed = json.loads(emotui_here("labels", "list", "--json", cache_dir=cache).stdout)
    measured = next(one["path"] for one in listed if one["meta"]["kind"] == "measured")
    flagged = emotui_here("labels", "show", measured, "--flagged", "--json", cache_dir=cache)
    shown = json.loads(flagged.stdout)
    assert shown and all(one["flag"].startswith("label says anger; measured:") for one in shown)
    assert {one["feature"].split("/")[0] for one in shown} == {"L2"}
    trace = emotui_here(
        "inspect", "A text.", "--model", model, "--sae", saes, "--json", cache_dir=cache
    )
    features = json.loads(trace.stdout)["features"]
    labels = [
        label
        for label, layer in zip(features["label"], features["layer"], strict=True)
        if layer == 2
    ]
    assert labels and all("words about anger" in label for label in labels)
    assert any("measured: none" in label for label in labels)


def test_wrong_usage_of_the_commands(tmp_path: Path) -> None:
    nothing = emotui_here("labels", "import", cache_dir=tmp_path)
    assert nothing.returncode == 2 and "nothing to import" in nothing.stderr
    offline = emotui_here(
        "labels", "import", "--from-neuronpedia", ID, "--offline", cache_dir=tmp_path
    )
    assert offline.returncode == 2 and "--offline forbids" in offline.stderr
    absent = emotui_here("labels", "show", "nothing", cache_dir=tmp_path)
    assert absent.returncode == 2 and "0 files" in absent.stderr
    gone = emotui_here("labels", "remove", "../x.sqlite", cache_dir=tmp_path)
    assert gone.returncode == 2 and "no feature labels" in gone.stderr
