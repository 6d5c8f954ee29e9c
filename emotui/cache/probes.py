"""Probes on disk: one sealed safetensors file each, its card readable without torch.

    probes/<first 16 digits of the model fingerprint>/<probe id>.safetensors

The arrays and the rest of the metadata are the fitting code's own; the card is metadata too.
Probes are made by the user's fits: they are never evicted and lie outside the size budget.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from emotui.cache import files, sealed
from emotui.core.errors import ProbeError
from emotui.core.probe_words import PREVIEW
from emotui.core.records import ProbeKind, Site, Trust
from emotui.core.text import clean

DEFINED = "defined-"
"""What the label set of an emotion that was defined by the user begins with; its name follows."""

NOT_JUDGED = "nothing: a direction that was imported is never trusted"
"""What the card of an imported direction says it was judged on; its accuracies are no numbers."""

_CARD = "emotui_probe_card"
_SUFFIX = ".safetensors"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
_FOLDER_DIGITS = 16


class ProbeScore(msgspec.Struct, frozen=True):
    """How well the probe of one site and layer does on held-out texts.

    Accuracies are balanced over the classes (mean recall), from 0 to 1.
    """

    site: Site
    layer: int
    """-1 is the embedding row."""
    balanced_accuracy: float
    shuffled_95: float
    """95th percentile of the same score after fitting on shuffled labels."""
    bag_accuracy: float
    """The bag-of-embeddings probe on the same texts."""
    trust: Trust
    bag_error: float | None = None
    """Standard error of the difference to the bag-of-embeddings probe."""
    bag_errors_needed: float | None = None
    """How many of these the difference must exceed: the 95th percentile of the best layer of this
    site where none is better. None where no layer's answers differ from the bag's, and in files
    from before it was measured, which asked for one."""
    shuffled_mean: float | None = None
    dev_accuracy: float | None = None
    """On the texts that the penalty, and the best layer, were chosen on."""
    test_accuracy: float | None = None
    """On all held-out texts of the same source; the two halves of these apart below."""
    named_accuracy: float | None = None
    """On those with an emotion word."""
    unnamed_accuracy: float | None = None
    """On those without one."""
    other_accuracy: float | None = None
    """On texts of another source; None without any."""
    control_accuracy: float | None = None
    """Of a probe of the same capacity on the control task: labels drawn at random for each first
    word (Hewitt and Liang 2019), mean of five drawings, on held-out texts of the same source. None,
    as the next three, where it was not measured."""
    selectivity: float | None = None
    """This probe's accuracy on those texts minus `control_accuracy`."""
    random_accuracy: float | None = None
    """On the judged texts, from as many random directions as there are labels, mean of five."""
    orthogonal_accuracy: float | None = None
    """The same with random directions orthogonal to all of the probe's."""


class AppraisalScore(msgspec.Struct, frozen=True, kw_only=True):
    """How well one appraisal is told from the residual at the readout of one layer.

    R^2 against the values that the situations' authors gave, on topics that were held out.
    """

    appraisal: str
    layer: int
    r_squared: float
    dev_r_squared: float
    """On the topics that the penalty, and the best layer, were chosen on."""
    shuffled_95: float
    """95th percentile, over shuffled values, of the best layer."""
    bag_r_squared: float
    """Of the mean embedding of the text's tokens, on the same texts."""


class ProbeCard(msgspec.Struct, frozen=True, kw_only=True):
    """What one must know of a fitted probe before using it."""

    id: str
    """Letters, digits, dot, underscore, hyphen; at most 120 characters."""
    fingerprint: str
    """Of the model it was fitted on, 64 hex digits."""
    model: str
    kind: ProbeKind
    label_set: str
    emotions: tuple[str, ...]
    """In the order of the probe's outputs."""
    template: str
    data: str
    """Name of the corpus or data file it was fitted on."""
    created: str
    """Coordinated universal time, ISO 8601 to the second."""
    sites: tuple[Site, ...]
    layers: tuple[int, ...]
    n_texts: int
    """Texts of the source it was fitted on, the held-out ones included."""
    judged_on: str = ""
    """Which held-out texts `balanced_accuracy` and the verdicts are about."""
    control_words: int | None = None
    """Different first words that the control task gives labels to; None where there is none."""
    control_texts: int | None = None
    """Held-out texts it is judged on: those whose first word occurs in training."""
    scores: tuple[ProbeScore, ...]
    """One for each site and layer that was fitted."""
    appraisals: tuple[AppraisalScore, ...] = ()
    """Of the appraisal directions that were fitted beside a readout probe, on the situations; ()
    where they were not."""

    @property
    def judged(self) -> bool:
        """Whether its accuracies were measured: not those of an imported direction."""
        return self.judged_on != NOT_JUDGED

    @property
    def preview(self) -> bool:
        """Whether it was fitted by ridge regression, as a preview."""
        return self.data.startswith(PREVIEW)

    def score_at(self, site: Site, layer: int) -> ProbeScore | None:
        """Return the score of one site and layer; None where none was fitted."""
        return next((s for s in self.scores if (s.site, s.layer) == (site, layer)), None)

    def best_appraisals(self) -> tuple[AppraisalScore, ...]:
        """Return the score of each appraisal at the layer that is best on dev, lowest of equals."""
        best: dict[str, AppraisalScore] = {}
        for score in sorted(self.appraisals, key=lambda one: (-one.dev_r_squared, one.layer)):
            best.setdefault(score.appraisal, score)
        return tuple(best[name] for name in dict.fromkeys(one.appraisal for one in self.appraisals))

    def best(self, site: Site = "resid") -> ProbeScore | None:
        """Return the best score of a site, the lowest layer among equals; None without any."""
        scores = [score for score in self.scores if score.site == site]
        return max(scores, key=lambda s: (s.balanced_accuracy, -s.layer), default=None)


def _path(root: Path, fingerprint: str, probe_id: str) -> Path:
    _check_id(probe_id)
    _check_id(fingerprint)
    return root / "probes" / fingerprint[:_FOLDER_DIGITS] / f"{probe_id}{_SUFFIX}"


def _check_id(name: str) -> None:
    if not _ID.fullmatch(name):
        raise ProbeError(
            f"{clean(name)[:60]!r} cannot be the id of a probe.",
            todo="`emotui probe list` shows the ids there are.",
        )


def write_probe(root: Path, probe_id: str, payload: bytes, card: ProbeCard) -> Path:
    """Write a probe atomically and return its path.

    `payload` is the probe as safetensors bytes. Raises ValueError where it is not, or where the
    card is another probe's; CacheError where the cache cannot be written.
    """
    if card.id != probe_id:
        raise ValueError(f"the card is that of {card.id}, not of {probe_id}")
    path = _path(root, card.fingerprint, probe_id)
    content = sealed.seal(payload, {_CARD: msgspec.json.encode(card).decode()})
    try:
        files.write_whole(path, content)
    except OSError as error:
        files.write_failed(root, error)
    return path


def paths(root: Path, fingerprint: str | None = None) -> Iterator[Path]:
    """Return the files of the probes of one model (None: of all)."""
    folder = "*" if fingerprint is None else fingerprint[:_FOLDER_DIGITS]
    if folder != "*":
        _check_id(folder)
    return (
        path
        for path in sorted((root / "probes").glob(f"{folder}/*{_SUFFIX}"))
        if not path.name.startswith(files.TEMPORARY)
    )


def remove_probe(root: Path, fingerprint: str, probe_id: str) -> None:
    """Remove a probe's file. ProbeError where there is none, OSError where it cannot be removed."""
    path = _path(root, fingerprint, probe_id)
    if not path.is_file():
        raise ProbeError(
            f"There is no probe {probe_id} in the cache.",
            todo="`emotui probe list` shows those there are.",
        )
    path.unlink()


def _card_of(metadata: dict[str, str]) -> ProbeCard:
    try:
        return msgspec.json.decode(metadata[_CARD], type=ProbeCard)
    except (KeyError, msgspec.DecodeError) as error:
        raise sealed.Damaged("no readable card") from error


def read_cards(root: Path, fingerprint: str | None = None) -> list[ProbeCard]:
    """Return the cards of the probes of one model (None: of all), newest first.

    Reads headers only; a file without a readable card is left out.
    """
    cards = []
    for path in paths(root, fingerprint):
        try:
            with path.open("rb") as file:
                card = _card_of(sealed.peek(file))
        except (OSError, sealed.Damaged):
            continue
        if fingerprint is None or card.fingerprint == fingerprint:
            cards.append(card)
    return sorted(cards, key=lambda card: (card.created, card.id), reverse=True)


def card_named(cards: Sequence[ProbeCard], name: str) -> ProbeCard:
    """Return the probe with this id, or the only one whose id begins so; else ProbeError."""
    exact = [card for card in cards if card.id == name]
    found = exact or [card for card in cards if name and card.id.startswith(name)]
    # One id may be that of two models' probes in a shared cache; ids hold the fingerprint.
    if len(found) == 1:
        return found[0]
    if found:
        raise ProbeError(
            f"{clean(name)!r} begins the ids of {len(found)} probes.",
            todo=f"Say which: {', '.join(card.id for card in found[:8])}.",
        ).of_input()
    raise ProbeError(
        f"There is no probe {clean(name)!r} in the cache.",
        todo="`emotui probe list` shows those there are; `emotui probe fit` makes them.",
    ).of_input()


def is_sound(path: Path) -> bool:
    """Return whether the file of a probe is whole and has its card."""
    try:
        return _card_of(sealed.unseal(path.read_bytes())).id == path.stem
    except (OSError, sealed.Damaged):
        return False


def read_probe(root: Path, probe_id: str) -> tuple[bytes, ProbeCard]:
    """Return a probe's safetensors bytes, checked, and its card.

    The metadata are those it was written with, plus the checksum and the card. Raises ProbeError
    where there is no such probe or its file is damaged.
    """
    _check_id(probe_id)
    for path in paths(root):
        if path.name != f"{probe_id}{_SUFFIX}":
            continue
        try:
            content = path.read_bytes()
            return content, _card_of(sealed.unseal(content))
        except sealed.Damaged as damage:
            raise ProbeError(
                f"The file of probe {probe_id} is damaged.",
                why=f"{path}: {damage}.",
                todo="Delete the file and fit again with `emotui probe fit`.",
            ) from damage
        except OSError as error:
            raise ProbeError(
                f"Probe {probe_id} could not be read.",
                why=f"{path}: {error.strerror}.",
                todo="Check the permissions of the cache, or choose another with --cache-dir.",
            ) from error
    raise ProbeError(
        f"There is no probe {probe_id} in the cache.",
        todo="`emotui probe list` shows those there are; `emotui probe fit` makes them.",
    )
