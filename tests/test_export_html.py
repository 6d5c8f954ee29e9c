"""The page of a trace: complete in itself, escaped, and with the trace's own numbers."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from support_traces import made_up_trace
from typer.testing import CliRunner

from emotui.cache.demo import install_demo
from emotui.cache.store import Store
from emotui.cli import app
from emotui.core.errors import ExportError
from emotui.core.export.html import html_bytes
from emotui.core.records import Control, Effect, Note, Trace

HOSTILE = (
    "</style><script>alert(1)</script>\"' onload=x <img src=http://evil.test/a> \x1b[31m\u202e&"
)


class _Page(HTMLParser):
    """What a browser would see: tags with their attributes, and the words of each element."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.words = ""
        self._inside: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" in self._inside:
            return
        self.words += data
        if {"td", "th"} & set(self._inside):
            self.rows[-1][-1] += data


def _edited() -> Trace:
    control = Control("matched_features", (0.1, -0.2), 1, ("L1/2", "L1/3"), "only 2 are active")
    effect = Effect("answer.anger", 0.5, 0.5, 0.1, -0.4, (control,), 0.001, "Rank 1 of 3.")
    trace = made_up_trace()
    return msgspec.structs.replace(trace, edits=("ablate L1/1 at all",), effects=(effect,))


def test_the_page_needs_nothing_and_runs_nothing() -> None:
    page = html_bytes(_edited())
    tags = _Page(page).tags
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & {t for t, _ in tags}
    for _, attributes in tags:
        assert not {"src", "href", "srcset", "action"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(rb"https?:|url\(|@import", page)
    policy = [a["content"] for t, a in tags if t == "meta" and "http-equiv" in a]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_what_comes_from_others_is_cleaned_and_escaped_everywhere() -> None:
    trace = _edited()
    tokens = tuple(msgspec.structs.replace(t, string=HOSTILE) for t in trace.text.tokens)
    features = msgspec.structs.replace(
        trace.features, label=tuple(HOSTILE for _ in trace.features.label)
    )
    run = msgspec.structs.replace(
        trace.run, model=HOSTILE, note=HOSTILE, revision=HOSTILE, packages={HOSTILE: HOSTILE}
    )
    probes = tuple(msgspec.structs.replace(one, data=HOSTILE) for one in trace.probes)
    effects = tuple(
        msgspec.structs.replace(
            one,
            metric=HOSTILE,
            verdict=HOSTILE,
            controls=tuple(msgspec.structs.replace(c, note=HOSTILE) for c in one.controls),
        )
        for one in trace.effects
    )
    trace = msgspec.structs.replace(
        trace,
        text=msgspec.structs.replace(trace.text, tokens=tokens),
        features=features,
        run=run,
        probes=probes,
        edits=(HOSTILE,),
        effects=effects,
    )
    page = html_bytes(trace, notes=(Note(trace.id, "2026-01-01T00:00:00Z", HOSTILE),))
    plain = {tag for tag, _ in _Page(html_bytes(_edited(), notes=())).tags}
    found = _Page(page)
    assert {tag for tag, _ in found.tags} - plain <= {"ul", "li", "h2", "strong", "p"}
    assert not [n for _, attributes in found.tags for n in attributes if n.startswith("on")]
    assert "\x1b" not in found.words and "\u202e" not in found.words
    assert found.words.count("<script>alert(1)</script>") > len(tokens)


def test_a_lone_surrogate_does_not_break_the_page() -> None:
    trace = made_up_trace()
    tokens = (
        msgspec.structs.replace(trace.text.tokens[0], string="\ud800"),
        *trace.text.tokens[1:],
    )
    text = msgspec.structs.replace(trace.text, tokens=tokens)
    html_bytes(msgspec.structs.replace(trace, text=text)).decode("utf-8")


def test_numbers_are_those_of_the_trace_and_the_same_twice(tmp_path: Path) -> None:
    install_demo(tmp_path)
    with Store.open(tmp_path) as store:
        row = store.traces()[0]
        trace = store.get_trace(row.id)
    page = html_bytes(trace)
    assert page == html_bytes(trace)
    rows = _Page(page).rows
    probe = next(one for one in trace.probes if one.kind == "readout")
    heads = [row for row in rows if row[:2] == ["layer", "trust"]]
    assert heads[-1][2:] == list(probe.emotions)
    columns = trace.readouts
    start = rows.index(heads[-1])
    for line in rows[start + 1 : start + 2 + trace.run.layers]:
        layer = -1 if line[0] == "emb" else int(line[0])
        wanted = {
            columns.emotion[n]: (columns.z[n], columns.trust[n])
            for n in range(len(columns.probe))
            if columns.probe[n] == probe.id
            and (columns.site[n], columns.layer[n]) == ("resid", layer)
            and columns.position[n] == trace.text.readout
        }
        assert len(wanted) == len(probe.emotions)
        for emotion, cell in zip(probe.emotions, line[2:], strict=True):
            z, trust = wanted[emotion]
            assert trust == line[1]
            assert cell == ("" if z is None else f"{z:+.1f}")
    assert trace.answer is not None
    for label, probability in trace.answer.labels.items():
        assert [label, f"{probability:.4f}"] in rows


def test_effects_stand_beside_their_controls() -> None:
    rows = _Page(html_bytes(_edited())).rows
    (effect,) = (row for row in rows if row[:1] == ["answer.anger"])
    assert effect[1:] == [
        *("0.5", "0.5", "0.1", "-0.4", "rank 1 of 3; -0.2 to +0.1", "0.001", "Rank 1 of 3.")
    ]


def test_marked_readings_are_outlined() -> None:
    trace = made_up_trace()
    plain = html_bytes(trace).count(b'class="hollow"')
    marks = tuple("outside" for _ in trace.readouts.mark)
    readouts = msgspec.structs.replace(trace.readouts, mark=marks)
    assert html_bytes(msgspec.structs.replace(trace, readouts=readouts)).count(b"hollow") > plain


def test_without_probes_it_says_so() -> None:
    trace = msgspec.structs.replace(made_up_trace(), probes=())
    assert b"no probe readings of these tokens" in html_bytes(trace)


@pytest.fixture
def cached(tmp_path: Path) -> tuple[str, str]:
    trace = made_up_trace(trace_id="1" * 16)
    with Store.open(tmp_path) as store:
        store.put_trace(trace, "1" * 64)
    return trace.id, str(tmp_path)


def test_the_command_writes_the_page(cached: tuple[str, str]) -> None:
    name, cache = cached
    done = CliRunner().invoke(app, ["export", name, "--to", "html", "--cache-dir", cache])
    assert done.exit_code == 0, done.output
    assert done.stdout_bytes.startswith(b"<!doctype html>")


def test_vectors_are_a_probes_and_the_command_says_which(cached: tuple[str, str]) -> None:
    name, cache = cached
    done = CliRunner().invoke(app, ["export", name, "--to", "gguf", "--cache-dir", cache])
    assert done.exit_code == 1
    assert isinstance(done.exception, ExportError)
    assert re.fullmatch(
        r"emotui probe export \S+ (anger|disgust|fear|joy|sadness|surprise|neutral) -o FILE.gguf",
        done.exception.todo,
    )
