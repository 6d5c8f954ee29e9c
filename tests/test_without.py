"""The keyword control: which words, which masks, planted truth, the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from math import comb
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest
from support_command import emotui_bytes_here
from support_edits import random_probe
from support_findings import LABELS, word_reader
from support_models import tiny_folder, tiny_model

from emotui.cache.store import Store
from emotui.cache.without import known_without, plain
from emotui.commands.schemas import document_schema
from emotui.core.emotion_terms import load_terms
from emotui.core.emotions import EMOTION_WORDS, LABEL_SETS
from emotui.core.engine.answer import label_tokens
from emotui.core.engine.capture import QuietJob, capture
from emotui.core.engine.instruments import Instruments
from emotui.core.engine.labelled import _file_rows, _situations
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.without import _lost, best_row, without_words
from emotui.core.errors import TextError, UsageError
from emotui.core.export.without import lines_of
from emotui.core.findings import Lost, Masked, WithoutWords
from emotui.core.inflections import INFLECTED, verb_forms
from emotui.core.protocol import InspectRequest, MaskedWords, ModelSpec, WithoutRequest
from emotui.core.text import template_named
from emotui.core.wording import (
    Word,
    content_words,
    drawn_sets,
    emotion_words,
    masked,
    words_in,
)

TEXT = "My dog was sad because the bus came at nine and the door was old."


# Words.


def test_emotion_words_are_found_whole_in_any_case_with_where_they_stand() -> None:
    text = "Sad? She was HEART-BROKEN, unhappily grieving; sadistic Joyce slept. Joy's annoying."
    found = emotion_words(text)
    assert [word.text for word in found] == [
        "Sad",
        "HEART-BROKEN",
        "unhappily",
        "grieving",
        "annoying",
    ]
    assert all(text[word.start : word.end] == word.text for word in found)


@pytest.mark.parametrize("name", sorted(LABEL_SETS))
def test_the_labels_of_every_set_are_emotion_words(name: str) -> None:
    for label in LABEL_SETS[name]:
        assert [word.text for word in emotion_words(f"It was {label}.")] == [label]


@pytest.mark.parametrize(
    "words",
    ["annoys irritate frustrates", "horrific jealous disappoints", "amazes startle embarrasses"],
)
def test_inflected_forms_are_found(words: str) -> None:
    assert [word.text for word in emotion_words(words)] == words.split()


@pytest.mark.parametrize(
    "words",
    [
        *("cry cries cried crying", "weep weeps wept weeping", "sob sobs sobbed sobbing"),
        *("regret regrets regretted regretting", "panic panics panicked panicking"),
        *("envy envies envied envying", "enjoy enjoys enjoyed enjoying", "hate hates hated hating"),
        *("anger angers angered angering", "stun stuns stunned stunning", "hurt hurts hurting"),
        *("upset upsets upsetting", "appalled appalling", "abhorred abhorring", "mourned mourning"),
        *("sadder saddest gladder gladdest", "angrier angriest", "prouder proudest", "scarier"),
        *("angrily anxiously horribly optimistically gratefully", "uneasiness tearfulness"),
        *("anxieties miseries joys fears", "laughed laughing smiled", "tears tearful teary"),
    ],
)
def test_inflected_forms_by_rule_and_irregular_ones_are_found(words: str) -> None:
    assert [word.text for word in emotion_words(words)] == words.split()


def test_forms_are_spelt_as_in_english() -> None:
    assert verb_forms("cry") == ("cries", "crying", ("cried",))
    assert verb_forms("weep") == ("weeps", "weeping", ("wept",))
    assert verb_forms("hurt") == ("hurts", "hurting", ("hurt",))
    assert verb_forms("embarrass") == ("embarrasses", "embarrassing", ("embarrassed",))
    misspelt = "cryed weeped sobed regreting panicing envyed enjoied angerred stuning hurted "
    misspelt += "upseted appaled sader glader angryly horriblely optimisticly anxietys sickenning"
    assert not INFLECTED & set(misspelt.split())


def test_words_that_only_look_alike_are_content() -> None:
    """What an inflected form is made from may mean something else; what rhymes with one does."""
    text = "please puzzle bore long alarm tear crystal slept swept hopper sobering scarf priced"
    assert emotion_words(text) == []


def test_one_list_says_what_is_masked_and_which_texts_are_without_emotion_words(
    tmp_path: Path,
) -> None:
    """No text that data calls without emotion words holds a word that would be masked."""
    words = [term.term for term in load_terms()]
    words += [form for form in INFLECTED if form not in EMOTION_WORDS][:100]
    texts = [f"It was {word} and the bus came at {n}." for n, word in enumerate(words)]
    assert [len(emotion_words(text)) for text in texts] == [1] * len(texts)
    file = tmp_path / "d.tsv"
    plain_ones = [f"The bus came at {n}." for n in range(len(texts))]
    rows = [f"{text}\tjoy" for text in texts] + [f"{text}\tfear" for text in plain_ones]
    file.write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    found, _ = _file_rows(str(file), ("joy", "fear"), None, None, None)
    assert [row.named for row in found] == [True] * len(texts) + [False] * len(plain_ones)
    assert all(row.named == bool(emotion_words(row.text)) for row in _situations())


def test_words_that_the_tables_have_are_masked() -> None:
    text = "I felt hurt, overwhelmed and numb, and I cried."
    assert [word.text for word in emotion_words(text)] == ["hurt", "overwhelmed", "numb", "cried"]


def test_content_words_are_neither_emotion_nor_function_words() -> None:
    words = [
        word.text for word in content_words("I couldn't hear that sad Old dog, and it wasn’t me")
    ]
    assert words == ["hear", "Old", "dog"]


def test_masking_keeps_everything_else_and_the_capital() -> None:
    text = "Sad, sad: the saddest."
    assert masked(text, emotion_words(text)) == "Something, something: the something."
    assert masked(text, emotion_words(text), "___") == "___, ___: the ___."
    assert masked(text, []) == text


def test_draws_are_different_sets_by_seed_and_all_where_there_are_few() -> None:
    words = words_in("one two three four five six seven eight")
    sets, choices = drawn_sets(words, 3, draws=20, seed=0)
    assert choices == comb(8, 3) and len(sets) == len(set(sets)) == 20
    assert all(len({word.start for word in some}) == 3 for some in sets)
    assert drawn_sets(words, 3, draws=20, seed=0)[0] == sets
    assert drawn_sets(words, 3, draws=20, seed=1)[0] != sets
    few, choices = drawn_sets(words[:4], 2, draws=20, seed=0)
    assert choices == len(few) == 6
    assert drawn_sets(words[:1], 2, draws=20, seed=0) == ([], 0)


# On models.


class Bench:
    """A model, a probe of random directions, a cache."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder
        self.model: LoadedModel = load_model(ModelSpec(str(folder)), QuietJob())
        self.store = Store.open(root / "cache")
        probe = random_probe(self.model)
        self.store.put_probe(probe.id, probe.to_bytes(), probe.file.card)
        self.instruments = Instruments(self.model, self.store)

    def request(self, text: str = TEXT, **changes: Any) -> WithoutRequest:
        probes: tuple[str, ...] = changes.pop("probes", ())
        inspect = InspectRequest(
            spec=ModelSpec(str(self.folder)),
            text=text,
            cache_dir=str(self.store.root),
            probes=probes,
        )
        return WithoutRequest(inspect, **changes)

    def found(self, text: str = TEXT, **changes: Any) -> MaskedWords:
        request = self.request(text, **changes)
        return without_words(request, self.model, self.instruments, self.store, QuietJob())

    def answer(self, text: str, emotion: str) -> float:
        template = template_named("ask")
        ids = [token.id for token in self.model.reader.read(text, template).tokens]
        deciding = label_tokens(self.model.reader, "ekman7", template).deciding
        scores = capture(self.model, ids).logits[list(deciding)].softmax(dim=-1)
        return float(scores[LABELS.index(emotion)])


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """It reads nothing but " sad"."""
    root = tmp_path_factory.mktemp("reader")
    made = Bench(word_reader(root, {" sad": 40.0}), root)
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def deaf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """It reads " dog" and " bus" words' pieces alike, and no emotion word."""
    root = tmp_path_factory.mktemp("deaf")
    made = Bench(word_reader(root, {" the": 40.0}), root)
    yield made
    made.store.close()


def lost(found: WithoutWords, metric: str) -> Lost:
    return next(one for one in found.lost if one.metric == metric)


def test_a_model_that_reads_only_the_word_loses_all_with_it(reader: Bench) -> None:
    found = reader.found(emotion="sadness").without
    answer = lost(found, "answer")
    assert found.after.words == ("sad",)
    assert answer.share is not None and answer.share > 0.9
    assert len(answer.controls) == len(found.controls) > 3
    # Other words change the length of the text by a few tokens, and nothing else.
    assert max(abs(share) for share in answer.controls) < 0.05
    assert (answer.rank, answer.percentile) == (1, 100)
    assert "Without 'sad'" in found.sentence and "rank 1 of" in found.sentence


def test_a_model_that_does_not_read_the_word_loses_nothing_with_it(deaf: Bench) -> None:
    found = deaf.found(emotion="sadness").without
    answer = lost(found, "answer")
    assert found.before.answer > 0.9
    assert answer.share is not None and abs(answer.share) < 0.05
    assert answer.rank is not None


def test_what_is_read_is_a_plain_run_of_the_masked_text(reader: Bench) -> None:
    found = reader.found(emotion="sadness").without
    assert found.masked_text == TEXT.replace("sad", "something")
    assert found.before.answer == pytest.approx(reader.answer(TEXT, "sadness"), abs=1e-6)
    assert found.after.answer == pytest.approx(
        reader.answer(found.masked_text, "sadness"), abs=1e-6
    )
    places = {word.text: word for word in content_words(TEXT)}
    for control in found.controls[:3]:
        some: list[Word] = [places[word] for word in control.words]
        text = masked(TEXT, some)
        assert control.answer == pytest.approx(reader.answer(text, "sadness"), abs=1e-6)
        assert not set(control.words) & {"sad"}


def test_the_readout_is_that_of_the_probe_at_its_best_layer(reader: Bench) -> None:
    found = reader.found(probes=("random",), emotion="joy").without
    (probe,) = reader.instruments.probes(("random",))
    row = best_row(probe)
    assert probe.places[row] == ("resid", found.layer) and found.unit == "z"
    ids = [t.id for t in reader.model.reader.read(TEXT, template_named("ask")).tokens]
    assert found.layer is not None
    h = capture(reader.model, ids).resid[found.layer + 1, -1]
    value = (h - probe.center[row]) @ probe.weight[row][:, probe.emotions.index("joy")]
    assert found.before.readout == pytest.approx(float(value + probe.bias[row, 1]), abs=1e-4)
    readout = lost(found, "readout")
    assert found.before.readout is not None and found.after.readout is not None
    above = probe.summary(len(ids)).marked_above.get("resid")
    assert readout.least == above
    if above is not None and found.before.readout > max(above, 0):
        share = (found.before.readout - found.after.readout) / found.before.readout
        assert readout.share == pytest.approx(share)
    else:
        assert readout.share is None and readout.controls == ()
        assert "nothing to lose" in found.sentence or "no share of it" in found.sentence


def test_no_share_of_what_is_not_above_what_neutral_texts_reach() -> None:
    """-466 % and the like: what is divided by is next to nothing."""
    whole, after = Masked((), 0.558, 0.03), Masked(("scared",), 3.1, 0.71)
    metrics: tuple[tuple[Literal["readout", "answer"], float], ...]
    metrics = (("readout", 3.3), ("answer", 1 / 7))
    for metric, least in metrics:
        found = _lost(metric, whole, after, [Masked(("dark",), 0.4, 0.04)], least=least)
        assert (found.share, found.controls, found.rank) == (None, (), None)
        assert found.least == least
    above = _lost("readout", Masked((), 6.6, 0.5), after, [], least=3.3)
    assert above.share == pytest.approx((6.6 - 3.1) / 6.6)
    assert _lost("readout", whole, after, [], least=None).share is None


def test_the_sentence_says_why_there_is_no_share_and_counts_in_words(reader: Bench) -> None:
    found = reader.found(emotion="joy").without
    assert found.before.answer < 1 / 7
    assert "no more than chance (0.14): nothing to lose" in found.sentence
    one = reader.found("She was sad about a dog.", emotion="sadness").without
    assert one.choices == 1 and "there is 1 set of as many other words" in one.sentence
    assert "1 of 1 set of 1 among 1 content word" in "\n".join(lines_of(one))
    assert "-0%" not in one.sentence + found.sentence


def test_an_emotion_the_probe_does_not_know_is_read_in_the_answer_alone(reader: Bench) -> None:
    found = reader.found(probes=("random",), emotion="sadness").without
    assert found.probe is None and [one.metric for one in found.lost] == ["answer"]


def test_without_an_emotion_it_is_the_likeliest_answer_but_neutral(reader: Bench) -> None:
    assert reader.found().without.emotion == "sadness"


def test_too_few_other_words_are_said_to_be_no_control(reader: Bench) -> None:
    found = reader.found("She was sad.", emotion="sadness").without
    assert found.content_words == found.choices == 0 and found.controls == ()
    assert lost(found, "answer").rank is None
    assert "no control: 0 other content words are too few" in found.sentence


def test_asking_again_is_from_the_cache_and_needs_no_engine(reader: Bench) -> None:
    request = reader.request(emotion="sadness", placeholder="thing")
    first = without_words(request, reader.model, reader.instruments, reader.store, QuietJob())
    again = without_words(request, reader.model, reader.instruments, reader.store, QuietJob())
    assert not first.cached and again.cached and again.forwards == 0
    assert again.without == first.without
    fingerprint = reader.model.fingerprint
    assert known_without(request, reader.store, fingerprint=fingerprint) == first.without
    other = reader.request(emotion="joy", placeholder="thing")
    assert known_without(other, reader.store, fingerprint=fingerprint) is None
    assert plain(request).inspect.edits == ()


@pytest.mark.parametrize(
    ("text", "changes", "kind", "words"),
    [
        ("The bus came at nine.", {}, TextError, "holds none of the"),
        (TEXT, {"emotion": "envy"}, UsageError, "'envy' is no label"),
        (TEXT, {"placeholder": " "}, UsageError, "placeholder is empty"),
        ("sad " * 200, {}, TextError, "too long"),
    ],
)
def test_what_cannot_be_is_refused(
    reader: Bench, text: str, changes: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        reader.found(text, **changes)


# The command.


def run(cache: Path, *arguments: str, here: bool = True) -> subprocess.CompletedProcess[bytes]:
    arguments = ("without", *arguments, "--model", str(tiny_folder("llama")))
    arguments += ("--cache-dir", str(cache))
    if here:
        return emotui_bytes_here(*arguments, cache_dir=cache)
    command = [sys.executable, "-m", "emotui", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, timeout=120, check=False, env=environment)


def test_the_command_prints_a_page_and_json_that_keeps_its_schema(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with Store.open(tmp_path / "cache") as store:
        probe = random_probe(model)
        store.put_probe(probe.id, probe.to_bytes(), probe.file.card)
    page = run(tmp_path / "cache", TEXT, "--emotion", "joy", here=False)
    assert page.returncode == 0, page.stderr.decode()
    assert "Without 'sad'" in page.stdout.decode() and "other words masked" in page.stdout.decode()
    done = run(tmp_path / "cache", TEXT, "--emotion", "joy", "--json")
    assert done.returncode == 0 and done.stderr == b""
    document = json.loads(done.stdout)
    jsonschema.validate(document, document_schema("without"))
    assert document["model"] == tiny_folder("llama").name
    assert document["without"]["after"]["words"] == ["sad"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("The bus came at nine.",), "none of the"),
        ((TEXT, "--emotion", "envy"), "'envy' is no label"),
        ((TEXT, "--placeholder", ""), "The placeholder is empty"),
        ((TEXT, "--template", "nine"), "no template called"),
        ((), "There is no text to read"),
    ],
)
def test_what_the_command_cannot_do_is_said_on_one_screen(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = run(tmp_path / "cache", *arguments)
    assert done.returncode == 2 and done.stdout == b""
    assert words in done.stderr.decode() and "Traceback" not in done.stderr.decode()
