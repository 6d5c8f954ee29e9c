"""Fitting probes: the solver, the controls and planted truths."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from support_fit import clusters, planted_texts
from torch import Tensor

from emotui.core.engine import controls
from emotui.core.engine.capture import QuietJob
from emotui.core.engine.collect import places_of
from emotui.core.engine.design import design_of
from emotui.core.engine.labelled import Labelled, LabelledText
from emotui.core.engine.logistic import balanced_weights, fit_logistic
from emotui.core.engine.place_fits import PlaceFits, fit_places, scores_of
from emotui.core.errors import Cancelled
from emotui.core.records import Trust

CPU = torch.device("cpu")


# --- the solver --------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("strength", [0.001, 0.1, 1.0])
def test_the_solution_is_that_of_scikit_learn(spread: float, strength: float) -> None:
    inputs, labels = clusters(400, 32, 7, spread)
    ours = fit_logistic(
        inputs[None], labels[None], classes=7, strength=torch.tensor(strength), tolerance=1e-5
    )
    theirs = LogisticRegression(C=strength, class_weight="balanced", max_iter=10_000, tol=1e-8)
    theirs.fit(inputs.double().numpy(), labels.numpy())
    weights = balanced_weights(labels[None], classes=7)[0].double().numpy()
    chosen = theirs.predict_log_proba(inputs.double().numpy())[np.arange(400), labels.numpy()]
    penalty = (theirs.coef_**2).sum() / (2 * strength * weights.sum())
    objective = -(chosen * weights).sum() / weights.sum() + penalty
    assert float(ours.objective) == pytest.approx(objective, abs=1e-5)
    assert torch.allclose(
        ours.weight[0, 0].T.double(), torch.from_numpy(theirs.coef_), atol=0.02 * strength**0.5
    )
    agreement = ours.logits(inputs[None])[0, 0].argmax(1).numpy() == theirs.predict(inputs.numpy())
    assert agreement.mean() > 0.99


def test_replicates_and_cells_are_fitted_as_if_alone() -> None:
    first, labels = clusters(200, 16, 4, 0.5)
    second = first.flip(1) * 0.5 + torch.randn(
        first.shape, generator=torch.Generator().manual_seed(1)
    )
    replicates = torch.stack([labels, labels.roll(7)])
    strengths = torch.tensor([[0.01, 1.0], [0.1, 0.001]])
    together = fit_logistic(
        torch.stack([first, second]), replicates, classes=4, strength=strengths, tolerance=1e-5
    )
    for cell, inputs in enumerate((first, second)):
        for replicate in range(2):
            alone = fit_logistic(
                inputs[None],
                replicates[replicate][None],
                classes=4,
                strength=strengths[cell, replicate],
                tolerance=1e-5,
            )
            assert torch.allclose(
                together.logits(torch.stack([first, second]))[cell, replicate],
                alone.logits(inputs[None])[0, 0],
                atol=5e-3,
            )
            assert float(together.objective[cell, replicate]) == pytest.approx(
                float(alone.objective), abs=1e-5
            )


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("group_bytes", [1, 2**14, 2**30])
def test_groups_of_cells_on_their_threads_come_back_in_order(
    threads: int, group_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, labels = clusters(120, 8, 3, 0.5)
    cells = torch.stack([first * (0.2 + 0.1 * cell) for cell in range(11)])
    strength = torch.tensor(0.1)
    alone = [
        fit_logistic(cell[None], labels[None], classes=3, strength=strength, tolerance=1e-5)
        for cell in cells
    ]
    monkeypatch.setattr("emotui.core.engine.logistic._GROUP_BYTES", group_bytes)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fit = fit_logistic(cells, labels[None], classes=3, strength=strength, tolerance=1e-5)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    objectives = torch.cat([one.objective for one in alone])
    assert torch.allclose(fit.objective, objectives, atol=1e-5)
    assert (objectives[:-1] - objectives[1:]).min() > 1e-3  # else the order could not be seen
    assert torch.allclose(fit.logits(cells)[3], alone[3].logits(cells[[3]])[0], atol=5e-3)


def test_rows_without_weight_play_no_part() -> None:
    inputs, labels = clusters(300, 16, 5, 0.4)
    keep = torch.arange(300) % 3 != 0
    weights = balanced_weights(labels[None], classes=5, keep=keep[None])
    strength = torch.tensor(0.1)
    masked = fit_logistic(
        inputs[None], labels[None], classes=5, strength=strength, weights=weights, tolerance=1e-5
    )
    removed = fit_logistic(
        inputs[None, keep], labels[None, keep], classes=5, strength=strength, tolerance=1e-5
    )
    assert torch.allclose(masked.weight, removed.weight, atol=2e-3)
    assert float(masked.objective) == pytest.approx(float(removed.objective), abs=1e-5)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    assert balanced_weights(labels[None], classes=3)[0].tolist() == pytest.approx(
        [6 / (3 * 3)] * 3 + [6 / 3] + [6 / (3 * 2)] * 2
    )


def test_a_fit_is_the_same_twice_and_can_be_cancelled() -> None:
    inputs, labels = clusters(200, 16, 4, 0.5)

    def once() -> Tensor:
        strength = torch.tensor([0.01])
        return fit_logistic(inputs[None], labels[None], classes=4, strength=strength).weight

    assert torch.equal(once(), once())

    def cancel() -> None:
        raise Cancelled("cancelled")

    with pytest.raises(Cancelled):
        fit_logistic(
            inputs[None], labels[None], classes=4, strength=torch.tensor([0.01]), check=cancel
        )


# --- the controls ------------------------------------------------------------------------------


def test_balanced_accuracy_is_that_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (90,), generator=generator)
    labels[labels == 3] = 2  # a class that does not occur
    predicted = torch.randint(5, (4, 90), generator=generator)
    found = controls.balanced_accuracy(predicted, labels, classes=5)
    for row in range(4):
        members = labels != 3
        expected = np.mean(
            [(predicted[row][labels == k] == k).float().mean() for k in (0, 1, 2, 4)]
        )
        assert float(found[row]) == pytest.approx(expected)
        assert members.all()
    everything = torch.randint(3, (60,), generator=generator)
    guess = torch.randint(3, (60,), generator=generator)
    assert float(controls.balanced_accuracy(guess, everything, classes=3)) == pytest.approx(
        balanced_accuracy_score(everything.numpy(), guess.numpy())
    )


def test_the_error_of_a_margin_is_that_of_the_bootstrap() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(140) % 7
    right = torch.rand(140, generator=generator)
    predicted = torch.where(right < 0.6, labels, (labels + 1) % 7)
    rival = torch.where(
        right + torch.rand(140, generator=generator) < 0.8, labels, (labels + 2) % 7
    )
    margin, error = controls.margin(predicted[None], rival, labels, classes=7)
    expected = controls.balanced_accuracy(predicted, labels, classes=7)
    expected = expected - controls.balanced_accuracy(rival, labels, classes=7)
    assert float(margin) == pytest.approx(float(expected))
    draws = []
    by_class = [torch.nonzero(labels == k).squeeze(1) for k in range(7)]
    for _ in range(2000):
        rows = torch.cat(
            [members[torch.randint(20, (20,), generator=generator)] for members in by_class]
        )
        difference = (predicted[rows] == labels[rows]).float() - (
            rival[rows] == labels[rows]
        ).float()
        draws.append(float(difference.mean()))
    assert float(error) == pytest.approx(float(np.std(draws)), rel=0.1)


def test_chance_pays_for_looking_at_every_layer() -> None:
    accuracies = torch.rand(10, 2000, generator=torch.Generator().manual_seed(0))
    mean, high = controls.chance_level(accuracies)
    assert mean == pytest.approx(10 / 11, abs=0.01)  # the mean of the largest of ten
    assert high == pytest.approx(0.95 ** (1 / 10), abs=0.01)


@pytest.mark.parametrize(
    ("accuracy", "bag_margin", "expected"),
    [
        (0.2, 0.5, "untrusted"),
        (0.5, 0.04, "lexical"),
        (0.5, 0.05, "lexical"),
        (0.5, -0.1, "lexical"),
        (0.5, 0.06, "trusted"),
    ],
)
def test_the_verdict(accuracy: float, bag_margin: float, expected: Trust) -> None:
    asked = {"accuracy": accuracy, "shuffled_95": 0.3, "bag_margin": bag_margin}
    found = controls.verdict(**asked, bag_error=0.02, needed=2.5, may_trust=True)
    assert found == expected
    # Texts of the same source as those fitted on earn no trust, however well a probe does.
    strict = controls.verdict(**asked, bag_error=0.02, needed=2.5, may_trust=False)
    assert strict == ("lexical" if expected == "trusted" else expected)


@pytest.mark.parametrize("alike", [0.0, 0.9])
def test_a_site_without_any_advantage_is_seldom_trusted_anywhere(alike: float) -> None:
    """Probes as good as the bag: at most about one site in twenty has a layer above it."""
    generator = torch.Generator().manual_seed(3)
    trials, layers, texts = 300, 8, 140
    labels = torch.arange(texts) % 7
    wrong = (labels + 1) % 7
    above = 0
    for _ in range(trials):
        rival = torch.where(torch.rand(texts, generator=generator) < 0.5, labels, wrong)
        shared = torch.rand(texts, generator=generator)
        own = torch.rand(layers, texts, generator=generator)
        same = torch.rand(layers, texts, generator=generator) < alike
        predicted = torch.where(torch.where(same, shared, own) < 0.5, labels, wrong)
        margins, errors = controls.margin(predicted, rival, labels, classes=7)
        needed = controls.margin_needed(predicted, rival, labels, classes=7)
        above += bool((margins > needed * errors).any())
        assert 1.0 < needed < 3.5
    assert above / trials < 0.085  # 5 % and two standard errors of 300 trials


def test_a_real_advantage_is_found_and_none_at_all_is_not() -> None:
    generator = torch.Generator().manual_seed(4)
    labels = torch.arange(420) % 7
    rival = torch.where(torch.rand(420, generator=generator) < 0.4, labels, (labels + 1) % 7)
    predicted = rival.repeat(6, 1)
    assert controls.margin_needed(predicted, rival, labels, classes=7) == float("inf")
    better = torch.rand(420, generator=generator) < 0.2
    predicted[3] = torch.where(better, labels, rival)
    margins, errors = controls.margin(predicted, rival, labels, classes=7)
    needed = controls.margin_needed(predicted, rival, labels, classes=7)
    assert (margins > needed * errors).tolist() == [False] * 3 + [True] + [False] * 2


def test_length_bins_cover_every_text_once() -> None:
    lengths = [10, 30, 20, 20, 20, *range(40, 200)]
    bins = controls.length_bins(lengths)
    assert len(bins) == 4
    assert sorted(text for _, members in bins for text in members) == list(range(len(lengths)))
    longest = 0
    for upper, members in bins:
        sizes = [lengths[text] for text in members]
        assert longest < min(sizes)
        assert max(sizes) == upper
        longest = upper
    assert controls.length_bins([5] * 90) == [(5, list(range(90)))]


# --- planted truths ----------------------------------------------------------------------------

LAYERS, WIDTH, FROM = 6, 24, 3


def _planted(data: Labelled, seed: int, *, lexical: float = 0.6) -> tuple[Tensor, Tensor]:
    """Vectors of both kinds in which the label arrives from the context at layer 3.

    The embeddings know it a little (more where the text is named). Attention brings it in layer 3
    alone, the MLP never; at the readout nothing is known before.
    """
    generator = torch.Generator().manual_seed(seed)
    places = places_of(LAYERS)
    labels = torch.tensor([text.label for text in data.texts])
    named = torch.tensor([2.0 if text.named else 1.0 for text in data.texts])
    words = torch.randn(7, WIDTH, generator=generator) * lexical
    context = torch.randn(7, WIDTH, generator=generator)

    def noise(size: float = 1.0) -> Tensor:
        return size * torch.randn(len(labels), WIDTH, generator=generator)

    embedding = words[labels] * named[:, None] + noise()
    from_context = context[labels] + noise(0.3)
    token = torch.empty(len(places), len(labels), WIDTH)
    readout = torch.empty(len(places), len(labels), WIDTH)
    for index, (site, layer) in enumerate(places):
        arrived = from_context if layer >= FROM else torch.zeros_like(embedding)
        if site == "resid":
            token[index] = embedding + arrived + noise(0.5 if layer >= 0 else 0.0)
            readout[index] = 3.0 + arrived + noise(0.5 if layer >= 0 else 0.0)
        else:
            brought = from_context if (site, layer) == ("attn", FROM) else noise()
            token[index] = brought + noise(0.5)
            readout[index] = brought + noise(0.5)
    return readout, token


def _trusts(data: Labelled, readout: Tensor, token: Tensor) -> tuple[dict[str, list[Trust]], ...]:
    design = design_of(data, seed=0)
    places = places_of(LAYERS)

    def fits(inputs: Tensor) -> PlaceFits:
        return fit_places(inputs, design, seed=0, job=QuietJob(), phase="", device=CPU)

    token_fits = fits(token)
    bag = token_fits.predicted[places.index(("resid", -1))]
    found = []
    for fitted in (fits(readout), token_fits):
        by_site: dict[str, list[Trust]] = {}
        for score in scores_of(fitted, bag, places, design):
            by_site.setdefault(score.site, []).append(score.trust)
        found.append(by_site)
    return tuple(found)


def test_probes_are_trusted_exactly_from_the_planted_layer_on() -> None:
    data = planted_texts()
    readout, token = _trusts(data, *_planted(data, seed=1))
    above, attention = LAYERS - FROM, ["untrusted"] * LAYERS
    attention[FROM] = "trusted"
    assert token["resid"] == ["lexical"] * (1 + FROM) + ["trusted"] * above
    assert readout["resid"] == ["untrusted"] * (1 + FROM) + ["trusted"] * above
    assert token["attn"] == readout["attn"] == attention
    assert token["mlp"] == readout["mlp"] == ["untrusted"] * LAYERS


@pytest.mark.parametrize("seed", range(3))
def test_a_corpus_with_shuffled_labels_gives_no_trusted_cell(seed: int) -> None:
    data = planted_texts()
    vectors = _planted(data, seed=1)
    order = torch.randperm(len(data.texts), generator=torch.Generator().manual_seed(seed))
    wrong = [data.texts[other].label for other in order.tolist()]
    texts = tuple(
        LabelledText(text.text, label, text.split, text.named, text.group)
        for text, label in zip(data.texts, wrong, strict=True)
    )
    for found in _trusts(Labelled(texts, data.emotions, "shuffled"), *vectors):
        assert all("trusted" not in trusts for trusts in found.values())


def test_judged_on_the_texts_without_emotion_words_or_on_another_source() -> None:
    data = planted_texts()
    design = design_of(data, seed=0)
    assert design.judged_on == (
        "held-out texts without emotion words, of topics that were not fitted on, of the same "
        "source"
    )
    assert design.may_trust
    own = design_of(msgspec.structs.replace(data, within=False), seed=0)
    assert not own.may_trust and "never trusted" in own.judged_on
    assert all(
        data.texts[row].split == "test" and not data.texts[row].named
        for row in design.judged.tolist()
    )
    extra = tuple(LabelledText(f"other {n}", n % 7, "other", True, "x") for n in range(70))
    two = Labelled(data.texts + extra, data.emotions, "two", other="three", within=False)
    design = design_of(two, seed=0)
    assert design.judged_on == "texts of another source: three"
    assert design.may_trust
    same = design_of(msgspec.structs.replace(two, another_source=False), seed=0)
    assert same.judged_on.startswith("another file of the same source; ")
    assert same.judged_on.endswith("never trusted: three") and not same.may_trust
    assert design.judged.tolist() == list(range(len(data.texts), len(data.texts) + 70))
    assert not set(design.neutral.tolist()) & set(design.judged.tolist())


def test_folds_never_part_a_topic_and_never_hold_a_held_out_text() -> None:
    data = planted_texts()
    folds = design_of(data, seed=3).folds.tolist()
    by_topic: dict[str, set[int]] = {}
    for text, fold in zip(data.texts, folds, strict=True):
        assert (fold >= 0) == (text.split == "train")
        by_topic.setdefault(text.group, set()).add(fold)
    assert all(len(found) == 1 for found in by_topic.values())
    assert {fold for fold in folds if fold >= 0} == set(range(5))


def test_out_of_fold_probes_never_saw_the_fold() -> None:
    data = planted_texts()
    design = design_of(data, seed=0)
    readout, _ = _planted(data, seed=1)
    chosen = readout[[4]]
    fits = fit_places(chosen, design, seed=0, job=QuietJob(), phase="", device=CPU)
    outside = (design.folds >= 0) & (design.folds != 2)
    inputs = chosen[0, outside]
    train = chosen[0, design.train]
    standard = (inputs - train.mean(0)) / train.std(0)
    theirs = LogisticRegression(
        C=float(fits.strength), class_weight="balanced", max_iter=10_000, tol=1e-8
    ).fit(standard.numpy(), design.labels[outside].numpy())
    neutral = design.neutral[design.folds[design.neutral] == 2]
    h = chosen[0, neutral]
    logits = (h - fits.center[0]) @ fits.fold_weight[0, 2] + fits.fold_bias[0, 2]
    expected = theirs.predict_proba(((h - train.mean(0)) / train.std(0)).numpy())
    assert len(neutral) > 20
    assert torch.softmax(logits, dim=1).numpy() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("preview", [False, True])
def test_the_progress_of_a_fit_counts_every_classifier(preview: bool) -> None:
    data = planted_texts()
    design = design_of(data, seed=0)
    readout, _ = _planted(data, seed=1)
    told: list[tuple[int, int]] = []

    class Listening(QuietJob):
        def progress(self, phase: str, done: int = 0, total: int = 0, /) -> None:
            told.append((done, total))

    for directions in (False, True):
        told.clear()
        fit_places(
            readout[:3],
            design,
            seed=0,
            job=Listening(),
            phase="fitting",
            device=CPU,
            preview=preview,
            directions=directions,
        )
        # Strengths (a preview has one), 20 shufflings, 5 folds, twice 5 random directions.
        each = (1 if preview else 4) + 20 + 5 + (10 if directions else 0)
        assert {total for _, total in told} == {3 * each}
        counts = [done for done, _ in told]
        assert counts[0] == 0 and counts[-1] == 3 * each
        assert counts == sorted(set(counts)) and len(counts) == (6 if directions else 4)
