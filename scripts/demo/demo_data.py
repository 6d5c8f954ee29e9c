"""What the demo model is trained and measured on: one record per text, with its targets.

Sources (see emotui/demo/README.md for licences): GoEmotions (train rows for training, dev rows for
every choice, test rows only for the card), XED, and the project's situations by topic.
crowd-enVENT is read for measuring only.
"""

from __future__ import annotations

import csv
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from emotui.core.corpus import load_situations
from emotui.core.emotions import LABEL_SETS, PLUTCHIK

EKMAN7 = LABEL_SETS["ekman7"]
GOEMOTIONS28 = LABEL_SETS["goemotions28"]
SITUATION13 = (
    *EKMAN7[:-1],
    *("anticipation", "trust", "guilt", "shame", "pride", "relief", "neutral"),
)
"""The situations' own labels; each is one token of the demo's tokenizer, like EKMAN7's."""

SITUATION_TO_EKMAN = {
    **{label: label for label in EKMAN7},
    **{"guilt": "sadness", "shame": "sadness", "pride": "joy", "relief": "joy"},
}
"""As ekman_mapping.json maps remorse, embarrassment, pride and relief; the others have no class."""

ENVENT_TO_EKMAN = SITUATION_TO_EKMAN | {"no-emotion": "neutral"}

_FINE_TO_13 = {"remorse": "guilt", "embarrassment": "shame", "pride": "pride", "relief": "relief"}
_XED = ("", "anger", "anticipation", "disgust", "fear", "joy", "sadness", "surprise", "trust")
_XED_WEIGHT = 0.3
_ROWS_OF_A_CLASS = 300
_SITUATION_WEIGHT = 1.0
_MAPPED_WEIGHT = 0.5
_SPACED_PUNCTUATION = re.compile(r" ([.,!?;:')])")


@dataclass(frozen=True, kw_only=True)
class Example:
    """A text and its targets; a target that the source does not give is None."""

    text: str
    source: str
    ekman: tuple[float, ...] | None = None
    """Distribution over EKMAN7."""
    weight: float = 1.0
    thirteen: int | None = None
    """Index into SITUATION13."""
    fine: tuple[int, ...] | None = None
    """Indices into GOEMOTIONS28 (GoEmotions)."""
    plutchik: tuple[int, ...] | None = None
    """Indices into PLUTCHIK (XED); empty means neutral."""
    named: bool | None = None


def goemotions(data: Path, split: str) -> list[Example]:
    """Return one split of GoEmotions; rows with several labels get their share of each class."""
    folder = data / "goemotions"
    names = [line.strip() for line in (folder / "emotions.txt").read_text().splitlines()]
    if "neutral" not in names:
        names.append("neutral")
    groups = json.loads((folder / "ekman_mapping.json").read_text())
    to_ekman = {fine: EKMAN7.index(name) for name, fines in groups.items() for fine in fines}
    to_ekman["neutral"] = EKMAN7.index("neutral")
    examples = []
    for line in (folder / f"{split}.tsv").read_text(encoding="utf-8").splitlines():
        text, ids, _ = line.split("\t")
        fine = [names[int(number)] for number in ids.split(",")]
        shares = [0.0] * len(EKMAN7)
        for label in fine:
            shares[to_ekman[label]] += 1 / len(fine)
        examples.append(
            Example(
                text=text,
                source="goemotions",
                ekman=tuple(shares),
                fine=tuple(GOEMOTIONS28.index(label) for label in fine),
                thirteen=_only([_FINE_TO_13.get(label, EKMAN7[to_ekman[label]]) for label in fine]),
            )
        )
    return examples


def single_label(examples: Iterable[Example]) -> list[Example]:
    """Return the rows with exactly one label before any mapping."""
    return [example for example in examples if example.fine is not None and len(example.fine) == 1]


def write_comments(data: Path, split: str, path: Path) -> None:
    """Write GoEmotions' rows of one label with their class, as `emotui probe fit --data` reads it.

    At most 300 of a class: probes are balanced over the classes, and the fit takes a minute.
    Only the user can read the file.
    """
    written: Counter[str] = Counter()
    path.touch(mode=0o600)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["text", "label"])
        for row in single_label(goemotions(data, split)):
            label = EKMAN7[row.ekman.index(1.0)] if row.ekman else ""
            if label and written[label] < _ROWS_OF_A_CLASS:
                written[label] += 1
                writer.writerow([row.text, label])


def xed(data: Path) -> list[Example]:
    """Return XED's lines; anticipation and trust have no class among EKMAN7."""
    folder = data / "xed"
    examples = []
    for line in (folder / "en-annotated.tsv").read_text(encoding="utf-8").splitlines():
        text, _, ids = line.rpartition("\t")
        labels = sorted({_XED[int(number)] for number in ids.split(",")})
        basic = [label for label in labels if label in EKMAN7]
        shares = [0.0] * len(EKMAN7)
        for label in basic:
            shares[EKMAN7.index(label)] += 1 / len(basic)
        examples.append(
            Example(
                text=_unspace(text),
                source="xed",
                ekman=tuple(shares) if basic else None,
                weight=_XED_WEIGHT,
                plutchik=tuple(PLUTCHIK.index(label) for label in labels),
                thirteen=_only(labels),
            )
        )
    neutral = tuple(float(label == "neutral") for label in EKMAN7)
    for line in (folder / "neu_en.txt").read_text(encoding="utf-8").splitlines():
        text = line.partition("\t")[2]
        examples.append(
            Example(
                text=_unspace(text),
                source="xed",
                ekman=neutral,
                weight=_XED_WEIGHT,
                plutchik=(),
                thirteen=_only(["neutral"]),
            )
        )
    return [example for example in examples if any(map(str.isalpha, example.text))]


def situations(split: str) -> list[Example]:
    """Return the situations of one split's topics, both halves of every pair."""
    examples = []
    for row in load_situations():
        if row.split != split:
            continue
        mapped = SITUATION_TO_EKMAN.get(row.emotion)
        examples.append(
            Example(
                text=row.text,
                source="situations",
                ekman=None if mapped is None else tuple(float(x == mapped) for x in EKMAN7),
                weight=_SITUATION_WEIGHT if mapped == row.emotion else _MAPPED_WEIGHT,
                thirteen=SITUATION13.index(row.emotion),
                named=row.named,
            )
        )
    return examples


def crowd_envent(data: Path) -> list[Example]:
    """Return crowd-enVENT's events with the emotion word hidden; for measuring only."""
    examples = []
    with (data / "crowd-envent" / "generation.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            mapped = ENVENT_TO_EKMAN.get(row["emotion"])
            if mapped is not None:
                shares = tuple(float(label == mapped) for label in EKMAN7)
                text = " ".join(row["hidden_emotion_text"].split())
                own = row["emotion"] in ("no-emotion", mapped)
                weight = 1.0 if own else _MAPPED_WEIGHT
                examples.append(
                    Example(text=text, source="crowd-envent", ekman=shares, weight=weight)
                )
    return examples


def joined(examples: Sequence[Example], count: int, *, seed: int) -> list[Example]:
    """Return `count` longer texts, each two to five of one class joined, so positions go far.

    The class of a text is its largest share; texts without one are left out.
    """
    chooser = random.Random(seed)
    by_class: dict[int, list[Example]] = {}
    for example in examples:
        if example.ekman is not None and max(example.ekman) == 1.0:
            by_class.setdefault(example.ekman.index(1.0), []).append(example)
    texts = []
    for _ in range(count):
        parts = chooser.choices(by_class[chooser.choice(sorted(by_class))], k=chooser.randint(2, 5))
        texts.append(
            Example(
                text=" ".join(part.text for part in parts),
                source=parts[0].source,
                ekman=parts[0].ekman,
                weight=0.5,
            )
        )
    return texts


def _only(labels: Sequence[str]) -> int | None:
    """Return the place in SITUATION13 of the one label of a row; None where there are more."""
    return SITUATION13.index(labels[0]) if len(set(labels)) == 1 else None


def _unspace(text: str) -> str:
    return _SPACED_PUNCTUATION.sub(r"\1", text).replace(" n't", "n't").strip()
