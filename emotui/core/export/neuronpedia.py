"""A trace as an attribution graph that Neuronpedia's schema (version 1.0.0) accepts.

Nodes: the tokens, the SAE features, the outputs that write towards the metric, the readouts of the
probes, the edits, and the metrics. A link is there only where an effect was attributed (one
backward pass) or measured (an edit that was made); `metadata.generation_settings` says which
weights are which. Layer and feature index stand apart; no Cantor pairing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from emotui.core.errors import ExportError
from emotui.core.export.json import at_readout, rounded
from emotui.core.records import EMBEDDING_LAYER, Trace
from emotui.core.text import clean

_FEATURES = 600  # largest by attribution, then by activation: pages draw no more
_PINNED = 12

Node = dict[str, Any]
Link = dict[str, Any]


def graph_bytes(trace: Trace, *, all_tokens: bool = False) -> bytes:
    """Return the graph of a trace: sorted keys, five digits, newline at the end.

    With `all_tokens` false, features, writes and readouts are those of the readout position.
    Raises ExportError where the trace holds nothing that could be a node beside its tokens.
    """
    shown = trace if all_tokens else at_readout(trace)
    nodes, links = _graph(shown)
    if len(nodes) == len(trace.text.tokens):
        raise ExportError(
            "There is nothing to draw.",
            why="This trace has no features, no readouts, no attribution and no edit.",
            todo="Inspect the text with SAEs, probes, or an edit.",
        )
    graph = {
        "metadata": _metadata(trace),
        "qParams": {
            "linkType": "both",
            "pinnedIds": _pinned(nodes, links),
            "clickedId": "",
            "supernodes": [],
            "sg_pos": "",
        },
        "nodes": nodes,
        "links": links,
    }
    return msgspec.json.encode(rounded(graph), order="sorted") + b"\n"


def _metadata(trace: Trace) -> dict[str, Any]:
    run = trace.run
    return {
        "slug": f"emotui-{trace.id}",
        "scan": clean(run.model),
        "schema_version": 1,
        "prompt": "".join(clean(token.string) for token in trace.text.tokens),
        "prompt_tokens": [clean(token.string) for token in trace.text.tokens],
        "generation_settings": {
            "links": (
                "attributed: <activation, gradient of the metric>, from one backward pass, what "
                "the metric would lose without the source; measured: how far a metric moved when "
                "the edit was made. Nothing else is linked."
            ),
            "metric": "" if trace.attribution is None else trace.attribution.metric,
            "template": run.template,
            "dtype": run.dtype,
        },
        "pruning_settings": {"features": _FEATURES},
        "emotui": {
            "trace": trace.id,
            "parent": trace.parent,
            "fingerprint": run.fingerprint,
            "revision": run.revision,
            "layer_base": run.layer_base,
            "edits": list(trace.edits),
            "note": run.note,
        },
    }


def _graph(trace: Trace) -> tuple[list[Node], list[Link]]:
    nodes: dict[str, Node] = {}
    links: list[Link] = []
    for node in _token_nodes(trace):
        nodes[node["node_id"]] = node
    target = _metric_node(trace)
    if target is not None:
        nodes[target["node_id"]] = target
    for node, weight in (*_feature_nodes(trace), *_write_nodes(trace)):
        nodes[node["node_id"]] = node
        if weight is not None and target is not None:
            links.append(_link(node, target, weight, "attributed"))
    for node in _probe_nodes(trace):
        nodes[node["node_id"]] = node
    edit = _edit_node(trace)
    if edit is not None:
        nodes[edit["node_id"]] = edit
        for node, weight in _effect_nodes(trace):
            node = nodes.setdefault(node["node_id"], node)
            links.append(_link(edit, node, weight, "measured"))
    return list(nodes.values()), links


def _link(source: Node, target: Node, weight: float, how: str) -> Link:
    ends = {"source": source["node_id"], "target": target["node_id"]}
    return {**ends, "weight": weight, "how": how}


def _node(
    node_id: str,
    kind: str,
    *,
    layer: str,
    position: int,
    clerp: str,
    feature: int | None = None,
    **more: Any,
) -> Node:
    return {
        "node_id": node_id,
        "jsNodeId": f"{node_id}-0",
        "feature": feature,
        "feature_type": kind,
        "layer": layer,
        "ctx_idx": position,
        "clerp": clean(clerp),
        **more,
    }


def _token_nodes(trace: Trace) -> Iterator[Node]:
    for position, token in enumerate(trace.text.tokens):
        yield _node(
            f"E_{token.id}_{position}",
            "embedding",
            layer="E",
            position=position,
            clerp=f"Emb: {token.string!r}",
        )


def _metric_node(trace: Trace) -> Node | None:
    found = trace.attribution
    if found is None or not found.metric:
        return None
    return _metric(trace, found.metric, value=found.value)


def _metric(trace: Trace, name: str, **more: Any) -> Node:
    return _node(
        f"metric_{name}",
        "logit",
        layer=str(trace.run.layers),
        position=trace.text.readout,
        clerp=name,
        **more,
    )


def _feature_nodes(trace: Trace) -> Iterator[tuple[Node, float | None]]:
    columns = trace.features
    rows = sorted(
        range(len(columns.index)),
        key=lambda row: (-abs(columns.attribution[row] or 0.0), -columns.activation[row], row),
    )
    for row in rows[:_FEATURES]:
        layer, index, position = columns.layer[row], columns.index[row], columns.position[row]
        site = columns.site[row]
        effect = columns.attribution[row]
        node = _node(
            # Two SAEs may read one site: the name of the SAE is part of the id.
            f"{site}_{layer}_{index}_{position}_{clean(columns.sae[row])}",
            "sae feature",
            layer=str(layer),
            position=position,
            clerp=columns.label[row] or f"{site} L{layer}/{index}",
            feature=index,
            activation=columns.activation[row],
            site=site,
            sae=clean(columns.sae[row]),
        )
        # Attribution is what ablating would change: what the feature adds is the opposite.
        yield node, None if effect is None else -effect


def _write_nodes(trace: Trace) -> Iterator[tuple[Node, float | None]]:
    if trace.attribution is None:
        return
    writes = trace.attribution.writes
    for site, layer, position, value in zip(
        writes.site, writes.layer, writes.position, writes.value, strict=True
    ):
        place = "E" if layer == EMBEDDING_LAYER else str(layer)
        kind = "embedding output" if layer == EMBEDDING_LAYER else f"{site} output"
        yield (
            _node(
                f"write_{site}_{layer}_{position}",
                kind,
                layer=place,
                position=position,
                clerp=f"{kind} {place}",
            ),
            value,
        )


def _probe_nodes(trace: Trace) -> Iterator[Node]:
    columns = trace.readouts
    for row, emotion in enumerate(columns.emotion):
        layer, position = columns.layer[row], columns.position[row]
        site = columns.site[row]
        place = "E" if layer == EMBEDDING_LAYER else str(layer)
        name = f"{emotion} {'emb' if place == 'E' else f'L{place}'}"
        yield _node(
            f"probe_{clean(columns.probe[row])}_{site}_{layer}_{position}_{emotion}",
            "emotion probe",
            layer=place,
            position=position,
            clerp=name if site == "resid" else f"{site} {name}",
            z=columns.z[row],
            value=columns.value[row],
            trust=columns.trust[row],
            mark=columns.mark[row],
            site=site,
        )


def _edit_node(trace: Trace) -> Node | None:
    if not trace.edits or not trace.effects:
        return None
    edit = trace.edits[-1]
    return _node(
        "edit",
        "intervention",
        layer="0",
        position=trace.text.readout,
        clerp=edit,
        edits=list(trace.edits),
    )


def _effect_nodes(trace: Trace) -> Iterator[tuple[Node, float]]:
    for effect in trace.effects:
        yield _metric(trace, effect.metric), effect.delta


def _pinned(nodes: list[Node], links: list[Link]) -> list[str]:
    largest = sorted(links, key=lambda link: -abs(link["weight"]))[:_PINNED]
    ends = (link[end] for link in largest for end in ("target", "source"))
    known = {node["node_id"] for node in nodes}
    return [name for name in dict.fromkeys(ends) if name in known]
