"""A feature in detail, against ordinary hooks and scikit-learn; the command."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from support_command import emotui_here
from support_edits import random_probe
from support_models import plain_model, tiny_folder
from support_saes import write_residual_saes, write_sae

from emotui.cache.details import kept_feature
from emotui.cache.store import Store
from emotui.core.corpus import Situation, load_situations
from emotui.core.details import FeatureDetail, margin_of, page_of
from emotui.core.engine import firing
from emotui.core.engine.capture import QuietJob
from emotui.core.engine.feature_detail import detail_feature
from emotui.core.engine.instruments import Instruments
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.errors import Cancelled, EditError, SaeError, UsageError
from emotui.core.export.feature import lines_of, ramp_of, sections_of
from emotui.core.protocol import FeatureRequest, InspectRequest, ModelSpec

TEXT = "The dog ran home and the boy cried."
FEW = 60
"""Situations of the corpus that are read here."""


@pytest.fixture(scope="module")
def few() -> Iterator[tuple[Situation, ...]]:
    situations = load_situations()
    chosen = tuple(situations[:: len(situations) // FEW])[:FEW]
    patch = pytest.MonkeyPatch()
    patch.setattr(firing, "load_situations", lambda: chosen)
    yield chosen
    patch.undo()


class Bench:
    def __init__(self, root: Path) -> None:
        self.folder = tiny_folder("llama")
        self.model: LoadedModel = load_model(ModelSpec(str(self.folder)), QuietJob())
        self.saes = write_residual_saes(
            root / "saes", d_in=self.model.d_model, layers=self.model.n_layers
        )
        self.store = Store.open(root / "cache")
        probe = random_probe(self.model)
        self.store.put_probe(probe.id, probe.to_bytes(), probe.file.card)
        self.instruments = Instruments(self.model, self.store)

    def request(self, feature: str, text: str = TEXT, **changes: Any) -> FeatureRequest:
        edits = changes.pop("edits", ())
        inspect = InspectRequest(
            spec=ModelSpec(str(self.folder)),
            text=text,
            cache_dir=str(self.store.root),
            saes=(str(self.saes),),
            probes=("random",),
            edits=edits,
            selected=bool(edits),
        )
        return FeatureRequest(inspect, feature=feature, **changes)

    def ask(self, feature: str, job: Any = None, **changes: Any) -> FeatureDetail:
        request = self.request(feature, **changes)
        return detail_feature(
            request, self.model, self.instruments, self.store, job or QuietJob()
        ).detail

    @property
    def sae(self) -> Any:
        (saes,) = self.instruments.saes((str(self.saes),), QuietJob())
        return saes.get("resid", 1)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("feature"))


@functools.cache
def plain_of(folder: Path) -> Any:
    return plain_model(folder)


def features_by_hooks(
    bench: Bench, ids: list[int], *, ablate: tuple[int, int] | None = None
) -> tuple[Any, Any]:
    """Run transformers alone; return what stands after block 1, and the next token's logits."""
    kept: list[Any] = []
    model = plain_of(bench.folder)

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        kept.append(hidden.detach()[0].clone())
        if ablate is None:
            return None
        index, position = ablate
        changed = hidden.clone()
        value = bench.sae.encode(hidden[0, position])[index]
        changed[0, position] -= value * bench.sae.directions([index])[0]
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = model.model.layers[1].register_forward_hook(hook)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1]
    handle.remove()
    return kept[0], logits


def active_feature(bench: Bench) -> tuple[int, int]:
    """Return a feature of layer 1 and a token of the text where it is active."""
    detail = bench.ask("L1/0", corpus=False)
    assert detail.here is not None
    ids = [token.id for token in detail.here.text.tokens]
    h, _ = features_by_hooks(bench, ids)
    values = bench.sae.encode(h)
    position = next(
        place for place, token in enumerate(detail.here.text.tokens) if token.part == "text"
    )
    return int(values[position].argmax()), position


def test_activations_and_the_removal_are_those_of_ordinary_hooks(bench: Bench) -> None:
    index, position = active_feature(bench)
    detail = bench.ask(f"L1/{index}", position=str(position), corpus=False)
    here = detail.here
    assert here is not None and here.position == position
    ids = [token.id for token in here.text.tokens]
    h, before = features_by_hooks(bench, ids)
    expected = bench.sae.encode(h)[:, index]
    torch.testing.assert_close(torch.tensor(here.activation), expected, atol=1e-4, rtol=1e-4)
    removed = here.removed
    assert removed is not None
    _, after = features_by_hooks(bench, ids, ablate=(index, position))
    from emotui.core.engine.answer import label_tokens
    from emotui.core.text import template_named

    labels = label_tokens(bench.model.reader, "ekman7", template_named("ask"))
    assert labels.rule == "first_token"
    for logits, told in ((before, removed.answer_before), (after, removed.answer_after)):
        scores = logits[list(labels.deciding)].double().softmax(-1).tolist()
        assert list(told.values()) == pytest.approx(scores, abs=1e-5)
        own, *others = [logits[token].item() for token in labels.deciding]
        wanted = own - sum(others) / len(others)
        assert margin_of(told, labels.labels[0]) == pytest.approx(wanted, abs=1e-3)
    assert min(removed.layer) == 1 and max(removed.layer) == bench.model.n_layers - 1
    assert removed.before != removed.after
    assert {effect.metric for effect in removed.effects} >= {"answer.joy", "readout.joy"}
    kept = bench.store.get_trace(removed.trace)
    assert kept.edits == (f"ablate L1/{index} at {position}",) and kept.parent == here.trace


def test_without_a_position_the_strongest_token_is_looked_at(bench: Bench) -> None:
    index, _ = active_feature(bench)
    here = bench.ask(f"L1/{index}", corpus=False).here
    assert here is not None
    ranked = [
        value
        for value, token in zip(here.activation, here.text.tokens, strict=True)
        if not token.special
    ]
    assert here.activation[here.position] == max(ranked) > 0


def test_a_feature_that_is_not_active_here_has_nothing_to_remove(bench: Bench) -> None:
    index, position = active_feature(bench)
    detail = bench.ask(f"L1/{index}", corpus=False)
    assert detail.here is not None

    def fires(other: int) -> bool:
        here = bench.ask(f"L1/{other}", position=str(position), corpus=False).here
        assert here is not None
        return here.activation[position] > 0

    silent = next(other for other in range(bench.sae.width) if not fires(other))
    here = bench.ask(f"L1/{silent}", position=str(position), corpus=False).here
    assert here is not None and here.removed is None and "not active here" in here.note


def test_promoted_tokens_are_the_logit_lens_of_the_decoder_row(bench: Bench) -> None:
    detail = bench.ask("L1/5", text="", corpus=False)
    plain = plain_model(bench.folder)
    direction = bench.sae.weights.decoder[5]
    with torch.no_grad():
        logits = plain.lm_head(direction * plain.model.norm.weight)
    z = (logits - logits.mean()) / logits.std()
    for told, order in ((detail.promoted, z.topk(10)), (detail.suppressed, (-z).topk(10))):
        strings = [bench.model.reader.string(token) for token in order.indices.tolist()]
        assert [token.token for token in told] == strings
    assert [token.z for token in detail.promoted] == pytest.approx(
        z.topk(10).values.tolist(), abs=1e-3
    )
    assert detail.here is None and detail.page is None
    assert detail.label and detail.label_origin == "the words it promotes"


def test_corpus_texts_and_areas_are_those_of_one_run_each(
    bench: Bench, few: tuple[Situation, ...]
) -> None:
    from emotui.core.emotions import LABEL_SETS
    from emotui.core.text import template_named

    index, _ = active_feature(bench)
    corpus = bench.ask(f"L1/{index}", text="").corpus
    assert corpus is not None and corpus.texts == FEW
    largest: dict[str, float] = {}
    readouts = []
    for one in few:
        record = bench.model.reader.read(one.text, template_named("ask"), context_length=512)
        h, _ = features_by_hooks(bench, [token.id for token in record.tokens])
        values = bench.sae.encode(h)[:, index]
        own = [row for row, token in enumerate(record.tokens) if token.part == "text"]
        largest[one.id] = float(values[own].max())
        readouts.append(float(values[-1]))
    best = sorted(largest.values(), reverse=True)[: len(corpus.strongest)]
    assert [max(one.activation) for one in corpus.strongest] == pytest.approx(best, abs=1e-3)
    assert [largest[one.id] for one in corpus.strongest] == pytest.approx(best, abs=1e-3)
    assert corpus.active == pytest.approx(np.mean([value > 0 for value in largest.values()]))
    for told in corpus.selectivity:
        named = [one.emotion in LABEL_SETS["ekman7"] for one in few]
        truth = np.array([one.emotion == told.emotion for one in few])[named]
        wanted = roc_auc_score(truth, np.array(readouts)[named])
        assert told.area == pytest.approx(wanted, abs=1e-3)
        assert told.texts == truth.sum()


def test_the_corpus_is_run_once_for_an_sae_and_kept(bench: Bench, few: object) -> None:
    bench.ask("L1/3", text="")
    before = bench.model.forwards
    other = bench.ask("L1/4", text="").corpus
    # Only the texts that are shown are run again, to be read token by token.
    assert other is not None
    assert bench.model.forwards - before <= firing.STRONGEST
    before = bench.model.forwards
    assert bench.ask("L1/4", text="").corpus == other
    assert bench.model.forwards == before
    request = bench.request("L1/4", position="3")
    detail = detail_feature(request, bench.model, bench.instruments, bench.store, QuietJob()).detail
    assert detail.here is not None
    assert kept_feature(bench.store, detail.here.trace, request) == detail


def test_a_cancelled_pass_keeps_nothing_and_progress_is_told(tmp_path: Path, few: object) -> None:
    bench = Bench(tmp_path)

    class Stopped(QuietJob):
        told: ClassVar[list[tuple[str, int, int]]] = []

        def progress(self, phase: str, done: int = 0, total: int = 0, /) -> None:
            self.told.append((phase, done, total))

        def check(self) -> None:
            if any(phase == "reading the corpus" and done for phase, done, _ in self.told):
                raise Cancelled("The work was cancelled.")

    with pytest.raises(Cancelled):
        bench.ask("L1/1", job=Stopped(), text="")
    assert ("reading the corpus", 0, FEW) in Stopped.told
    before = bench.model.forwards
    assert bench.ask("L1/1", text="").corpus is not None
    assert bench.model.forwards - before > firing.STRONGEST


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("L1/99999", SaeError),
        ("L40/1", SaeError),
        ("mlp:L1/1", SaeError),
        ("fear", UsageError),
        ("L1/1 L1/2", UsageError),
        ("", UsageError),
    ],
)
def test_names_that_lead_nowhere_are_refused(
    bench: Bench, name: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        bench.ask(name, corpus=False)


def test_a_position_past_the_end_is_refused(bench: Bench) -> None:
    with pytest.raises(EditError, match="past the end"):
        bench.ask("L1/1", position="999", corpus=False)


def test_margins_pages_and_glyphs() -> None:
    assert margin_of({"joy": 0.5, "fear": 0.25, "anger": 0.25}, "joy") == pytest.approx(np.log(2))
    assert margin_of({"joy": 1.0, "fear": 0.0}, "joy") is None
    assert margin_of({"joy": 1.0}, "joy") is None and margin_of({}, "joy") is None
    assert page_of("gemma-2-2b/20-gemmascope-res-16k", 7) == (
        "https://www.neuronpedia.org/gemma-2-2b/20-gemmascope-res-16k/7"
    )
    assert page_of(None, 7) is None
    assert (ramp_of(0, 5), ramp_of(0.1, 5), ramp_of(5, 5), ramp_of(1, 0)) == ("", "·", "█", "")


def test_lines_are_clean_and_within_their_width(bench: Bench, few: object) -> None:
    index, _ = active_feature(bench)
    detail = bench.ask(f"L1/{index}", text="a\x1b[31mred\u202e thing happened to the dog")
    for width in (50, 73, 103):
        lines = lines_of(detail, width=width)
        assert not any("\x1b" in line or "\u202e" in line for line in lines)
        for heading, rows in sections_of(detail, width=width):
            if heading.startswith("Texts"):
                continue  # a token longer than a line stays whole
            assert all(len(row) <= width for row in rows), heading


# The command.


def run(*arguments: str, cache: Path, here: bool = True) -> subprocess.CompletedProcess[str]:
    if here:
        return emotui_here("feature", *arguments, "--cache-dir", str(cache), cache_dir=cache)
    return subprocess.run(
        [sys.executable, "-m", "emotui", "feature", *arguments, "--cache-dir", str(cache)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )


def test_the_command_prints_one_document_and_refuses_what_is_not_there(
    bench: Bench, tmp_path: Path
) -> None:
    options = ("--model", str(bench.folder), "--sae", str(bench.saes), "--no-corpus")
    done = run("L1/5", TEXT, *options, "--json", cache=tmp_path, here=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "emotui-feature"
    assert document["feature"]["name"] == "L1/5" and document["feature"]["corpus"] is None
    assert len(document["feature"]["here"]["activation"]) == len(
        document["feature"]["here"]["text"]["tokens"]
    )
    shown = run("L1/5", *options, cache=tmp_path)
    assert shown.returncode == 0 and "Promotes" in shown.stdout
    wrong = run("L1/99999", *options, cache=tmp_path)
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert "has features 0 to 63" in wrong.stderr
    assert run("nonsense", *options, cache=tmp_path).returncode == 2


# Other sites, and edits in force.


def test_an_sae_on_mlp_outputs_is_read_at_every_token(bench: Bench, tmp_path: Path) -> None:
    folder = write_sae(
        tmp_path / "mlp", d_in=bench.model.d_model, hook="blocks.1.hook_mlp_out", k=None
    )
    inspect = msgspec.structs.replace(bench.request("L1/1").inspect, saes=(str(folder),))
    request = FeatureRequest(inspect, feature="mlp:L1/0", position="3", corpus=False)

    def ask(name: str) -> FeatureDetail:
        asked = msgspec.structs.replace(request, feature=name)
        return detail_feature(asked, bench.model, bench.instruments, bench.store, QuietJob()).detail

    here = ask("mlp:L1/0").here
    assert here is not None
    kept: list[Any] = []
    plain = plain_of(bench.folder)
    handle = plain.model.layers[1].mlp.register_forward_hook(
        lambda _module, _inputs, output: kept.append(output.detach()[0])
    )
    with torch.no_grad():
        plain(torch.tensor([[token.id for token in here.text.tokens]]))
    handle.remove()
    (saes,) = bench.instruments.saes((str(folder),), QuietJob())
    values = saes.get("mlp", 1).encode(kept[0])
    index = int(values[3].argmax())
    found = ask(f"mlp:L1/{index}").here
    assert found is not None and found.removed is not None
    torch.testing.assert_close(
        torch.tensor(found.activation), values[:, index], atol=1e-4, rtol=1e-4
    )
    assert found.removed.edit == f"ablate mlp:L1/{index} at 3"


def test_edits_in_force_are_in_force_in_the_detail(bench: Bench) -> None:
    index, position = active_feature(bench)
    plain = bench.ask(f"L1/{index}", position=str(position), corpus=False).here
    assert plain is not None
    edit = f"ablate L1/{index} at {position}"
    without = bench.ask(f"L1/{index}", position=str(position), corpus=False, edits=(edit,)).here
    assert without is not None and without.edits == (edit,)
    ids = [token.id for token in plain.text.tokens]
    h, _ = features_by_hooks(bench, ids)
    value = bench.sae.encode(h[position])[index]
    left = h[position] - value * bench.sae.directions([index])[0]
    expected = float(bench.sae.encode(left)[index])
    assert without.activation[position] == pytest.approx(expected, abs=1e-4)
    for place in range(position):
        assert without.activation[place] == pytest.approx(plain.activation[place], abs=1e-4)
