"""The attribution graph: Neuronpedia's schema, ends that exist, and weights that were measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from support_traces import made_up_trace

from emotui.cache.demo import DEMO_FOLDER, install_demo
from emotui.cache.store import Store
from emotui.core.errors import ExportError
from emotui.core.export.neuronpedia import graph_bytes
from emotui.core.records import Features, Readouts, Trace

# apps/webapp/app/api/graph/graph-schema.json, draft-07, version 1.0.0: what it requires.
SCHEMA: dict[str, Any] = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "required": ["metadata", "qParams", "nodes", "links"],
    "properties": {
        "metadata": {
            "type": "object",
            "required": ["slug", "scan", "prompt_tokens", "prompt"],
            "properties": {
                "slug": {"type": "string"},
                "scan": {"type": "string"},
                "prompt": {"type": "string"},
                "prompt_tokens": {"type": "array", "items": {"type": "string"}},
                "node_threshold": {"type": "number"},
                "schema_version": {"type": "number"},
                "feature_details": {"type": "object"},
                "info": {"type": "object"},
                "generation_settings": {"type": "object"},
                "pruning_settings": {"type": "object"},
            },
        },
        "qParams": {
            "type": "object",
            "properties": {
                "pinnedIds": {"type": "array", "items": {"type": "string"}},
                "supernodes": {"type": "array", "items": {"type": "array"}},
                "linkType": {"type": "string"},
                "clickedId": {"type": "string"},
                "sg_pos": {"type": "string"},
            },
        },
        "nodes": {
            "type": "array",
            "items": {
                "type": "object",
                "required": [
                    "node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"
                ],
                "properties": {
                    "node_id": {"type": "string"},
                    "feature": {"type": ["integer", "null"]},
                    "layer": {"type": ["string", "integer"]},
                    "ctx_idx": {"type": "integer"},
                    "feature_type": {"type": "string"},
                    "jsNodeId": {"type": "string"},
                    "clerp": {"type": "string"},
                    "influence": {"type": "number"},
                    "activation": {"type": "number"},
                },
            },
        },
        "links": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["source", "target", "weight"],
                "properties": {
                    "source": {"type": "string"},
                    "target": {"type": "string"},
                    "weight": {"type": "number"},
                },
            },
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    root = tmp_path_factory.mktemp("demo")
    install_demo(root, DEMO_FOLDER)
    with Store.open(root) as store:
        row = next(row for row in store.traces() if row.edits)
        return store.get_trace(row.id)


def graph_of(trace: Trace, **options: Any) -> dict[str, Any]:
    graph: dict[str, Any] = json.loads(graph_bytes(trace, **options))
    jsonschema.Draft7Validator(SCHEMA).validate(graph)
    names = [node["node_id"] for node in graph["nodes"]]
    assert len(names) == len(set(names))
    ends = {link[end] for link in graph["links"] for end in ("source", "target")}
    assert ends <= set(names) and set(graph["qParams"]["pinnedIds"]) <= set(names)
    assert all(0 <= node["ctx_idx"] < len(trace.text.tokens) for node in graph["nodes"])
    return graph


@pytest.mark.parametrize("all_tokens", [False, True])
def test_the_example_validates_and_says_the_same_twice(example: Trace, all_tokens: bool) -> None:
    graph = graph_of(example, all_tokens=all_tokens)
    assert graph_bytes(example, all_tokens=all_tokens) == graph_bytes(
        example, all_tokens=all_tokens
    )
    assert graph["metadata"]["scan"] == example.run.model
    assert len(graph["metadata"]["prompt_tokens"]) == len(example.text.tokens)
    assert "node_threshold" not in graph["metadata"]
    kinds = {node["feature_type"] for node in graph["nodes"]}
    assert {"embedding", "sae feature", "emotion probe", "logit", "intervention"} <= kinds
    probes = [node for node in graph["nodes"] if node["feature_type"] == "emotion probe"]
    assert all(node["feature"] is None for node in probes)
    assert "fear L4" in {node["clerp"] for node in probes}


def test_weights_are_the_attribution_and_the_measured_effects(example: Trace) -> None:
    graph = graph_of(example)
    nodes = {node["node_id"]: node for node in graph["nodes"]}
    columns, readout = example.features, example.text.readout
    expected = {
        (columns.layer[row], columns.index[row]): -(columns.attribution[row] or 0.0)
        for row in range(len(columns.index))
        if columns.position[row] == readout and columns.attribution[row] is not None
    }
    linked = {
        (int(nodes[link["source"]]["layer"]), nodes[link["source"]]["feature"]): link["weight"]
        for link in graph["links"]
        if nodes[link["source"]]["feature_type"] == "sae feature"
    }
    assert linked and linked == pytest.approx({key: expected[key] for key in linked}, rel=1e-4)
    measured = {
        nodes[link["target"]]["clerp"]: link["weight"]
        for link in graph["links"]
        if link["how"] == "measured"
    }
    assert measured == pytest.approx({e.metric: e.delta for e in example.effects}, rel=1e-4)
    # A readout is read, not attributed: nothing is linked to it.
    ends = {link[end] for link in graph["links"] for end in ("source", "target")}
    assert not any(nodes[end]["feature_type"] == "emotion probe" for end in ends)


def test_without_attribution_nothing_is_linked() -> None:
    trace = made_up_trace(trace_id="0" * 16, raw="A short text.", model="m")
    trace = msgspec.structs.replace(trace, attribution=None, edits=(), effects=())
    graph = graph_of(trace)
    assert not graph["links"] and len(graph["nodes"]) > len(trace.text.tokens)
    with pytest.raises(ExportError, match="nothing to draw"):
        graph_bytes(msgspec.structs.replace(trace, features=Features(), readouts=Readouts()))


def test_hostile_labels_are_cleaned() -> None:
    trace = made_up_trace(trace_id="0" * 16, raw="A short text.", model="m\x1b]0;x\x07")
    labels = tuple("\x1b[31m\u202elabel" for _ in trace.features.index)
    trace = msgspec.structs.replace(
        trace, features=msgspec.structs.replace(trace.features, label=labels)
    )
    data = graph_bytes(trace, all_tokens=True)
    assert b"\\u001b" not in data and "\u202e" not in data.decode()


def test_the_command_writes_it(tmp_path: Path, example: Trace) -> None:
    file = tmp_path / "graph.json"
    install_demo(tmp_path / "cache")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "emotui", "export", example.id, "--to", "neuronpedia"),
            *("-o", str(file), "--cache-dir", str(tmp_path / "cache")),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    jsonschema.Draft7Validator(SCHEMA).validate(json.loads(file.read_bytes()))
