"""Traces made up for tests: any number of tokens, layers, probes and features."""

from __future__ import annotations

from emotui.core.emotions import LABEL_SETS
from emotui.core.records import (
    Answer,
    Features,
    Lens,
    ProbeSummary,
    Readouts,
    Run,
    SaeReading,
    Site,
    TextRecord,
    Token,
    Trace,
)

SITES: tuple[Site, ...] = ("resid", "attn", "mlp")
LABELS = LABEL_SETS["ekman7"]


def made_up_trace(
    *,
    trace_id: str = "00112233445566aa",
    tokens: int = 12,
    layers: int = 4,
    features_at_readout: int = 32,
    features_elsewhere: int = 4,
    parent: str | None = None,
    raw: str | None = None,
    model: str = "made-up",
) -> Trace:
    """Return a trace with BOS, text tokens and a three-token template tail; numbers vary."""
    text_tokens = tokens - 4
    words = [f" word{i}" for i in range(text_tokens)]
    raw_text = "".join(words).strip() if raw is None else raw
    records = [Token(2, "<bos>", None, None, True, "special")]
    start = 0
    for i, word in enumerate(words):
        end = min(start + len(word), len(raw_text))
        records.append(Token(10 + i, word, start, end, False, "text"))
        start = end
    records += [Token(5 + i, tail, None, None, False, "after") for i, tail in enumerate(TAIL)]
    readout = tokens - 1
    return Trace(
        id=trace_id,
        parent=parent,
        run=Run(
            model=model,
            revision=None,
            fingerprint="f" * 64,
            architecture="gemma2",
            layers=layers,
            d_model=64,
            dtype="float32",
            device="cpu",
            attention="eager",
            template="ask",
            bos=True,
            layer_base=0,
            packages={"torch": "2.13.0"},
            seed=0,
        ),
        text=TextRecord(raw_text, tuple(records), readout, readout - 3),
        probes=tuple(
            ProbeSummary(
                id=f"probe-{kind}",
                kind=kind,
                label_set="ekman7",
                emotions=LABELS,
                template="ask",
                data="situations",
                sites=SITES,
                held_out_accuracy=0.61234,
                bag_accuracy=0.41234,
                marked_above=dict.fromkeys(SITES, 2.5),
            )
            for kind in ("readout", "token")
        ),
        saes=tuple(
            SaeReading(
                f"made-up/resid.{layer}", "resid", layer, 1024, "topk", 0.93, 31.5, "made-up"
            )
            for layer in range(layers)
        ),
        readouts=_readouts(tokens, layers),
        features=_features(tokens, layers, features_at_readout, features_elsewhere),
        answer=Answer(
            dict(zip(LABELS, (0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1), strict=True)),
            "ekman7",
            "first_token",
            1,
        ),
        lens=Lens(
            layer=tuple(layer for layer in range(layers) for _ in range(10)),
            rank=tuple(rank for _ in range(layers) for rank in range(10)),
            token=tuple(f" token{rank}" for _ in range(layers) for rank in range(10)),
            probability=tuple(0.5 / (1 + rank) for _ in range(layers) for rank in range(10)),
            answers={label: tuple(1 / 7 for _ in range(layers)) for label in LABELS},
        ),
    )


TAIL = (" The", " emotion", " is")


def _readouts(tokens: int, layers: int) -> Readouts:
    rows = [
        (probe, site, layer, position, emotion)
        for probe in ("probe-readout", "probe-token")
        for site in SITES
        for layer in range(-1 if site == "resid" else 0, layers)
        for position in (range(tokens) if probe == "probe-token" else (tokens - 4, tokens - 1))
        for emotion in LABELS
    ]
    numbers = [((7 * i) % 101 - 50) / 17.3 for i in range(len(rows))]
    return Readouts(
        probe=tuple(row[0] for row in rows),
        site=tuple(row[1] for row in rows),
        layer=tuple(row[2] for row in rows),
        position=tuple(row[3] for row in rows),
        emotion=tuple(row[4] for row in rows),
        value=tuple(numbers),
        z=tuple(number * 1.7 for number in numbers),
        trust=tuple("untrusted" if row[2] < 0 else "trusted" for row in rows),
        mark=tuple(
            "" if (row[0] == "probe-readout") == (row[3] == tokens - 1) else "outside"
            for row in rows
        ),
    )


def _features(tokens: int, layers: int, at_readout: int, elsewhere: int) -> Features:
    rows = [
        (layer, (13 * rank + 7 * position + layer) % 16384, position, rank)
        for layer in range(layers)
        for position in range(1, tokens)
        for rank in range(at_readout if position == tokens - 1 else elsewhere)
    ]
    sites = SITES[:1] * len(rows)
    return Features(
        sae=tuple(f"made-up/resid.{row[0]}" for row in rows),
        site=sites,
        layer=tuple(row[0] for row in rows),
        index=tuple(row[1] for row in rows),
        position=tuple(row[2] for row in rows),
        activation=tuple(30.123456 / (1 + row[3]) for row in rows),
        attribution=(None,) * len(rows),
        label=tuple(f"joy: happy, glad, {row[1]}" for row in rows),
    )
