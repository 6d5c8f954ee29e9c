"""Traces and payloads for the tests of the cache."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from safetensors.numpy import save

from emotui.cache.keys import trace_id
from emotui.cache.store import Store
from emotui.core.records import (
    Answer,
    Features,
    Lens,
    Mark,
    ProbeSummary,
    Readouts,
    Run,
    Site,
    TextRecord,
    Token,
    Trace,
    Trust,
)

LABELS = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")


def key_of(name: str) -> str:
    """Return a key, 64 hex digits, that only this name has."""
    return hashlib.sha256(name.encode()).hexdigest()


def payload_of(seed: int, *, kilobytes: int = 1) -> bytes:
    """Return safetensors bytes of random numbers."""
    numbers = np.random.default_rng(seed).standard_normal((kilobytes, 256)).astype(np.float32)
    payload: bytes = save({"resid": numbers}, {"seed": str(seed)})
    return payload


def make_trace(
    key: str,
    *,
    text: str = "Lily was sad because her toy was lost.",
    model: str = "stories260K",
    parent: str | None = None,
    layers: int = 3,
) -> Trace:
    """Return a small trace with something in every part, as the engine would fill it."""
    words = text.split(" ")
    tokens = [Token(1, "<s>", None, None, True, "special")]
    at = 0
    for number, word in enumerate(words):
        tokens.append(Token(number + 5, word, at, at + len(word), False, "text"))
        at += len(word) + 1
    last = len(tokens) - 1
    cells = [
        (layer, position, label)
        for layer in range(-1, layers)
        for position in range(len(tokens))
        for label in LABELS
    ]
    resid: Site = "resid"
    lexical: Trust = "lexical"
    unmarked: Mark = ""
    values = np.random.default_rng(0).standard_normal(len(cells)).astype(np.float32).tolist()
    return Trace(
        id=trace_id(key),
        parent=parent,
        run=Run(
            model=model,
            revision=None,
            fingerprint=key_of(model),
            architecture="llama",
            layers=layers,
            d_model=64,
            dtype="float32",
            device="cpu",
            attention="eager",
            template="raw",
            bos=True,
            layer_base=0,
            packages={"torch": "2.13.0"},
            seed=0,
        ),
        text=TextRecord(raw=text, tokens=tuple(tokens), readout=last, last=last),
        probes=(
            ProbeSummary(
                id="p1",
                kind="token",
                label_set="ekman7",
                emotions=LABELS,
                template="raw",
                data="corpus",
                sites=("resid",),
                held_out_accuracy=0.5,
                bag_accuracy=0.25,
                marked_above={},
            ),
        ),
        readouts=Readouts(
            probe=("p1",) * len(cells),
            site=(resid,) * len(cells),
            layer=tuple(cell[0] for cell in cells),
            position=tuple(cell[1] for cell in cells),
            emotion=tuple(cell[2] for cell in cells),
            value=tuple(values),
            z=(None, *values[1:]),
            trust=(lexical,) * len(cells),
            mark=(unmarked,) * len(cells),
        ),
        features=Features(
            sae=("s",) * 2,
            site=("resid", "mlp"),
            layer=(0, 1),
            index=(4412, 7),
            position=(1, last),
            activation=(1.5, 0.25),
            attribution=(None, -0.5),
            label=("", "grief"),
        ),
        answer=Answer(
            labels=dict.fromkeys(LABELS, 1 / 7), set="ekman7", rule="first_token", prompts=1
        ),
        lens=Lens(
            layer=(0, 0),
            rank=(0, 1),
            token=(" sad", " toy"),
            probability=(0.5, 0.25),
            answers={"anger": (0.5, 0.25, 0.125)},
        ),
    )


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        self.now += 1000.0
        return self.now


def put(store: Store, name: str, **parts: Any) -> str:
    """Put a small trace under the key of a name and return its id."""
    key = key_of(name)
    trace = make_trace(key, **parts)
    store.put_trace(trace, key)
    return trace.id
