"""The exported script: it redoes a trace without emotui, and one altered number makes it fail."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from support_edits import random_probe
from support_models import tiny_folder, tiny_model
from support_saes import write_sae
from support_traces import made_up_trace

from emotui.cache.demo import DEMO_FOLDER, DEMO_MODEL, demo_saes, example, has_demo, install_demo
from emotui.cache.lineage import ancestors_of
from emotui.cache.store import Store
from emotui.commands.export import export_trace
from emotui.core.emotions import LABEL_SETS
from emotui.core.engine.capture import QuietJob
from emotui.core.engine.inspect import inspect
from emotui.core.engine.instruments import Instruments
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.sites import SITE_TABLES
from emotui.core.errors import ExportError
from emotui.core.export.json import document_bytes, read_document, trace_of
from emotui.core.export.markdown import markdown_bytes
from emotui.core.export.python import MODULES, script_bytes
from emotui.core.export.strengths import mean_norms, promoted_directions
from emotui.core.protocol import InspectRequest, ModelSpec
from emotui.core.records import Site, Trace

needs_demo = pytest.mark.skipif(not has_demo(), reason="this build carries no demo model")
TEXT = "He shouted at me for no reason, and then he laughed."
EVERY_KIND = (
    "scale L1/{0} x1.5 at all",
    "steer L1/9 +0.2 at all",
    "clamp L1/{1} = 3 at last",
    "ablate L1/{2} at all",
    "knock attn L2-3 zero",
    "knock mlp L2 random at all",
    "knock head L3.1 zero",
    "knock head L3.0 random at last",
    "promote joy L4 +0.1",
    "promote fear L5 +0.05 along row",
    "project out anger L5-6",
    "steer L4/7 -0.1 at readout",
)
WITHOUT_EMOTUI = (
    "import runpy, sys; sys.modules['emotui'] = None; sys.argv = sys.argv[1:]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


@dataclass(frozen=True)
class Written:
    """A trace with its lineage, and the arguments its script takes on this machine."""

    trace: Trace
    ancestors: tuple[Trace, ...]
    norms: dict[tuple[Site, int], float]
    directions: dict[tuple[str, int], tuple[float, ...]]
    cache: Path
    arguments: tuple[str, ...]

    def script(self, trace: Trace | None = None, *, all_tokens: bool = False) -> bytes:
        return script_bytes(
            trace or self.trace,
            ancestors=self.ancestors,
            all_tokens=all_tokens,
            norms=self.norms,
            directions=self.directions,
        )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Written]]:
    """Run the demo model with edits and its own probes and SAEs."""
    root = tmp_path_factory.mktemp("demo") / "cache"
    root.mkdir(mode=0o700)
    install_demo(root)
    model = load_model(ModelSpec(str(DEMO_MODEL), dtype="float32", device="cpu"), QuietJob())
    probes = sorted((DEMO_FOLDER / "cache" / "probes").rglob("*.safetensors"))
    with Store.open(root) as store:

        def run(text: str, *edits: str) -> Written:
            written = ran(model, store, text, edits, demo_saes(), [path.stem for path in probes])
            arguments = ("--model", str(DEMO_MODEL), "--sae", *demo_saes(), "--probe")
            return Written(*written, root, (*arguments, *map(str, probes)))

        yield run


def ran(
    model: LoadedModel,
    store: Store,
    text: str,
    edits: tuple[str, ...],
    saes: tuple[str, ...],
    probes: list[str],
    labels: str = "ekman7",
) -> tuple[
    Trace,
    tuple[Trace, ...],
    dict[tuple[Site, int], float],
    dict[tuple[str, int], tuple[float, ...]],
]:
    request = InspectRequest(
        model.spec,
        text,
        str(store.root),
        label_set=labels,
        saes=saes,
        probes=tuple(probes),
        edits=edits,
    )
    done = inspect(request, model, Instruments(model, store), store, QuietJob())
    trace = store.get_trace(done.trace_id)
    units = mean_norms(trace, store), promoted_directions(trace, store)
    return trace, tuple(ancestors_of(trace, store)), *units


def in_a_clean_process(folder: Path, script: bytes, *arguments: str) -> tuple[int, str]:
    """Run a script where emotui cannot be imported; return the exit code and what it printed."""
    path = folder / "redo.py"
    path.write_bytes(script)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EMOTUI, str(path), *arguments],
        cwd=folder,
        capture_output=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return done.returncode, done.stdout.decode() + done.stderr.decode()


def in_this_process(
    folder: Path, script: bytes, written: Written, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    path = folder / "redo.py"
    path.write_bytes(script)
    before = sys.argv
    sys.argv = [str(path), *written.arguments]
    try:
        runpy.run_path(str(path), run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = 1 if isinstance(ended.code, str) else int(ended.code or 0)
    finally:
        sys.argv = before
    return code, capsys.readouterr().out


def with_mass(written: Written) -> int:
    """Return how many traces say which share of the next token their labels hold."""
    answers = [trace.answer for trace in (written.trace, *written.ancestors)]
    return sum(answer is not None and answer.mass is not None for answer in answers)


def checked(printed: str) -> int:
    """Return how many numbers agreed, all of those checked."""
    found = re.search(r"(\d+) of (\d+) numbers agree", printed)
    assert found is not None and found[1] == found[2], printed
    return int(found[1])


@needs_demo
def test_the_bundled_example_is_redone_in_a_clean_process(
    demo: Callable[..., Written], tmp_path: Path
) -> None:
    shown = example()
    written = demo(shown.text, *shown.edits)
    script = written.script()
    code, printed = in_a_clean_process(tmp_path, script, *written.arguments)
    assert code == 0, printed
    # Both traces: 7 probabilities and the edited feature; each probe at 25 places, logit and z of
    # 7 emotions (but no z in the embedding of " is", the same after every text); then places, norm
    # and KL, and 15 effects in four states.
    expected = 2 * (7 + 1 + 2 * 25 * 7 * 2 - 7) + 3 + 15 * 4
    assert checked(printed) == expected + with_mass(written)
    assert "not checked" not in printed
    assert str(DEMO_FOLDER.parent) not in script.decode() and "/tmp" not in script.decode()
    assert shown.text not in script.decode()

    done = written.trace.intervention
    assert done is not None
    changed = msgspec.structs.replace(done, kl=done.kl + 0.001)
    altered = msgspec.structs.replace(written.trace, intervention=changed)
    code, printed = in_a_clean_process(tmp_path, written.script(altered), *written.arguments)
    assert code == 1
    assert "after 1 edits, KL: found" in printed
    assert len([line for line in printed.splitlines() if "the trace says" in line]) == 1


@needs_demo
def test_the_script_says_what_must_be_given(demo: Callable[..., Written], tmp_path: Path) -> None:
    written = demo(TEXT)
    assert written.trace.run.revision is None
    script = written.script()
    code, printed = in_a_clean_process(tmp_path, script)
    assert (code, len(printed.splitlines())) == (2, 1), printed
    assert f"local folder, {written.trace.run.model}, which is not here" in printed
    assert "give --model FOLDER" in printed

    empty = tmp_path / "empty"
    empty.mkdir()
    code, printed = in_a_clean_process(tmp_path, script, "--model", str(empty))
    assert code == 2 and "Traceback" not in printed
    assert f"The model {empty} could not be loaded" in printed

    for family in ("gpt2", "llama"):
        other = tiny_folder(family)
        code, printed = in_a_clean_process(tmp_path, script, "--model", str(other))
        assert code == 2 and "Traceback" not in printed, printed
        assert "is another one than the trace's" in printed

    code, printed = in_a_clean_process(
        tmp_path, script, "--model", str(DEMO_MODEL), "--probe", "missing.safetensors"
    )
    assert (code, "Traceback" in printed) == (2, False)
    assert "The probe missing.safetensors was not found" in printed


def moved(trace: Trace) -> bool:
    """Return whether the last edit of a trace changed anything."""
    return trace.intervention is not None and trace.intervention.delta_norm > 0


def altered_answer(trace: Trace) -> Trace:
    assert trace.answer is not None
    labels = {**trace.answer.labels, "fear": trace.answer.labels["fear"] + 0.001}
    return msgspec.structs.replace(
        trace, answer=msgspec.structs.replace(trace.answer, labels=labels)
    )


def altered_mass(trace: Trace) -> Trace:
    assert trace.answer is not None and trace.answer.mass is not None
    answer = msgspec.structs.replace(trace.answer, mass=trace.answer.mass - 0.001)
    return msgspec.structs.replace(trace, answer=answer)


def altered_readout(trace: Trace) -> Trace:
    row = trace.readouts.position.index(trace.text.readout)
    zs = list(trace.readouts.z)
    zs[row] = (zs[row] or 0.0) + 0.01
    return msgspec.structs.replace(
        trace, readouts=msgspec.structs.replace(trace.readouts, z=tuple(zs))
    )


def largest(trace: Trace, layer: int, site: Site = "resid") -> list[int]:
    """Return the features that are most active at the last token of the text, largest first."""
    features = trace.features
    there = [
        row
        for row, position in enumerate(features.position)
        if (features.site[row], features.layer[row], position) == (site, layer, trace.text.last)
    ]
    there.sort(key=lambda row: -features.activation[row])
    return [features.index[row] for row in there]


def altered_feature(trace: Trace) -> Trace:
    features = trace.features
    (row,) = (
        row
        for row, place in enumerate(
            zip(features.layer, features.index, features.position, strict=True)
        )
        if place == (1, largest(trace, 1)[0], trace.text.last)
    )
    values = list(features.activation)
    values[row] += 0.01
    changed = msgspec.structs.replace(features, activation=tuple(values))
    return msgspec.structs.replace(trace, features=changed)


def altered_effect(trace: Trace) -> Trace:
    first = msgspec.structs.replace(trace.effects[0], before=trace.effects[0].before + 0.001)
    return msgspec.structs.replace(trace, effects=(first, *trace.effects[1:]))


@needs_demo
def test_edits_of_every_kind_it_can_redo_stack(
    demo: Callable[..., Written], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    active = largest(demo(TEXT).trace, 1)
    written = demo(TEXT, *(line.format(*active) for line in EVERY_KIND))
    assert len(written.ancestors) == len(EVERY_KIND)
    assert all(moved(trace) for trace in (written.trace, *written.ancestors[:-1]))
    code, printed = in_this_process(tmp_path, written.script(all_tokens=True), written, capsys)
    assert code == 0, printed
    assert checked(printed) > 10_000
    document = read_document(
        document_bytes(written.trace, ancestors=written.ancestors, all_tokens=False)
    )
    rounded = script_bytes(
        trace_of(document),
        ancestors=document.ancestors,
        norms=written.norms,
        directions=written.directions,
    )
    code, printed = in_this_process(tmp_path, rounded, written, capsys)
    assert code == 0, printed
    export_trace(
        written.trace.id,
        to="py",
        all_tokens=True,
        out=tmp_path / "exported.py",
        force=False,
        cache_dir=written.cache,
    )
    assert (tmp_path / "exported.py").read_bytes() == written.script(all_tokens=True)
    last = written.trace
    for alter, words in (
        (altered_answer, "answer.fear: found"),
        (altered_mass, "mass of the labels: found"),
        (altered_readout, ", z: found"),
        (altered_feature, f"resid L1/{active[0]} at {last.text.last}: found"),
        (altered_effect, " before: found"),
    ):
        code, printed = in_this_process(tmp_path, written.script(alter(last)), written, capsys)
        assert code == 1
        wrong = [line for line in printed.splitlines() if "the trace says" in line]
        assert len(wrong) == 1 and words in wrong[0] and "after 12 edits" in wrong[0]


@pytest.mark.parametrize("rule", ["whole_label", "after_shared_prefix"])
def test_saes_on_attention_and_mlp_outputs_and_other_label_rules(
    rule: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """JumpReLU and TopK, a probe of random directions; in stories260K labels share a space."""
    labels, folder = "plutchik9", tiny_folder("llama")
    if rule == "after_shared_prefix":
        labels, folder = "spaced", request.getfixturevalue("stories")
        sets = {**LABEL_SETS, labels: ("joy", "zoo", "quiet")}
        for module in ("core.engine.answer", "core.engine.inspect", "cache.keys"):
            monkeypatch.setattr(f"emotui.{module}.LABEL_SETS", sets)
    model = load_model(ModelSpec(str(folder), dtype="float32", device="cpu"), QuietJob())
    width, top = model.d_model, model.n_layers - 1
    saes = tmp_path / "saes"
    write_sae(saes / "a", d_in=width, hook="blocks.1.hook_attn_out", k=None)
    write_sae(saes / "m", d_in=width, hook="blocks.2.hook_mlp_out", seed=1)
    write_sae(saes / "r", d_in=width, hook=f"blocks.{top}.hook_resid_pre", k=None, seed=2)
    probe = random_probe(model)
    (tmp_path / f"{probe.id}.safetensors").write_bytes(probe.to_bytes())
    with Store.open(tmp_path / "cache") as store:
        store.put_probe(probe.id, probe.to_bytes(), probe.file.card)
        clean, *_ = ran(model, store, TEXT, (), (str(saes),), [probe.id])
        active = largest(clean, 1, "attn")
        edits = (
            f"ablate attn:L1/{active[0]} at all",
            "clamp mlp:L2/4 = 2 at readout",
            f"steer L{top - 1}/6 +0.3 at all",
            f"scale attn:L1/{active[1]} x2 at last",
        )
        found = ran(model, store, TEXT, edits, (str(saes),), [probe.id], labels)
        assert found[0].answer is not None and found[0].answer.rule == rule
    arguments = ("--model", str(folder), "--sae", str(saes), "--probe")
    written = Written(
        *found, tmp_path / "cache", (*arguments, str(tmp_path / f"{probe.id}.safetensors"))
    )
    code, printed = in_this_process(tmp_path, written.script(), written, capsys)
    assert code == 0, printed
    assert checked(printed) > 500
    assert all(moved(trace) for trace in (written.trace, *written.ancestors[:-1]))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "qwen2", "olmo2"])
def test_the_sites_of_each_architecture(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also from the JSON document, whose numbers have five digits."""
    model = tiny_model(family)
    edits = ("knock attn L1 zero", "knock head L2.0 zero", "knock mlp L2 random at all")
    with Store.open(tmp_path / "cache") as store:
        found = ran(model, store, TEXT, edits, (), [])
    written = Written(*found, tmp_path / "cache", ("--model", str(tiny_folder(family))))
    document = read_document(
        document_bytes(written.trace, ancestors=written.ancestors, all_tokens=False)
    )
    script = script_bytes(trace_of(document), ancestors=document.ancestors)
    for one in (script, written.script()):
        code, printed = in_this_process(tmp_path, one, written, capsys)
        assert code == 0, printed
        # 4 traces of 7 probabilities and mass; 3 of places, norm, KL and 8 effects in 4 states.
        assert checked(printed) == 4 * 8 + 3 * (3 + 8 * 4)


def test_what_the_script_cannot_redo_is_refused_by_name() -> None:
    trace = made_up_trace()
    for line, words in (
        ('patch mlp L2 from "a private text" at readout', "Edit 1 (patch)"),
        ("knock attn L1-2 mean at readout", "Edit 1 (knock mean)"),
        ("knock head L1.0 resample at readout", "Edit 1 (knock resample)"),
        ("modulate +other_agency L2 +0.1 at readout", "Edit 1 (modulate)"),
        ("steer L1/5 +0.2 at all", "Edit 1 (steer)"),
        ("promote joy L2 +0.1 at readout", "Edit 1 (promote)"),
        ("promote joy L2 +0.1 along row at readout", "Edit 1 (promote)"),
    ):
        edited = msgspec.structs.replace(trace, edits=(line,))
        with pytest.raises(ExportError) as caught:
            script_bytes(edited)
        assert words in str(caught.value)
        assert "private" not in str(caught.value)
    other = msgspec.structs.replace(trace, run=msgspec.structs.replace(trace.run, architecture="x"))
    with pytest.raises(ExportError, match="script for this model"):
        script_bytes(other)


def test_module_names_are_those_of_the_site_table() -> None:
    assert {
        name: (table.blocks, table.attn, table.mlp, table.mixed_heads)
        for name, table in SITE_TABLES.items()
    } == dict(MODULES)


def test_strings_of_a_trace_stay_data() -> None:
    trace = made_up_trace(model='m"""\nraise SystemExit(7)\n#\u202e\x1b[2J')
    namespace: dict[str, object] = {}
    script = script_bytes(trace)
    assert script.isascii()
    exec(compile(script, "redo.py", "exec"), namespace)
    fields = namespace["TRACE"]
    assert isinstance(fields, dict) and fields["model"] == trace.run.model
    assert script == script_bytes(trace)
    document = read_document(document_bytes(trace, all_tokens=True))
    assert b"TRACE = {" in script_bytes(trace_of(document))


@needs_demo
def test_markdown_says_what_was_measured_beside_its_controls(demo: Callable[..., Written]) -> None:
    shown = example()
    written = demo(shown.text, *shown.edits)
    trace = written.trace
    page = markdown_bytes(trace, ancestors=written.ancestors).decode()
    assert "n = 1" in page and "seed 0" in page and "Versions: emotui" in page
    for effect in trace.effects:
        (row,) = (line for line in page.splitlines() if line.startswith(f"| {effect.metric} |"))
        assert f"{effect.delta:+.4g}" in row and f"{effect.after:.4g}" in row
        rank = effect.controls[0].rank
        assert f"rank {rank} of {len(effect.controls[0].deltas) + 1}" in row
    assert trace.run.note in page and "Limits:" in page
    assert "`ablate L6/222 at readout`" in page
    assert shown.text not in page


def test_markdown_of_hostile_strings_stays_plain() -> None:
    trace = made_up_trace(model="a|b\n# c <script>`\u202e")
    page = markdown_bytes(trace).decode()
    assert "<script>" not in page.replace("\\<script\\>", "")
    assert "\u202e" not in page and "\n# c" not in page
    assert "No edit" not in page and "## Answer" in page
