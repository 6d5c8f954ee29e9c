"""What may stand next in an edit: the grammar of `language` as slots, for consoles.

Every completion comes from a line that the parser reads once its remaining words are there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from emotui.core.edits.kinds import ALONG, FEATURE_OPERATIONS, KNOCK_KINDS
from emotui.core.edits.words import is_amount, quoted, unquoted
from emotui.core.errors import EditError, EmotuiError

# As in `words`, but a quotation that is still being typed is one word.
_SPAN = re.compile(r'(?:file:)?"(?:[^"\\]|\\.)*(?:"|\\)?|[^\s"]+', re.DOTALL)
_FEATURE = re.compile(r"(?:(?:resid|attn|mlp|z):)?L\d{1,4}/\d{1,9}")
_WINDOW = re.compile(r"L\d{1,4}(?:-\d{1,4})?")
_RANGE = re.compile(r"\d{1,9}(?:-\d{1,9})?")
_NAME = re.compile(r"[^\W\d_][\w-]*")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


@dataclass(frozen=True, kw_only=True)
class EditContext:
    """What there is to name at this moment; empty where it is not known."""

    layers: int = 0
    """Number of layers of the model."""
    layer: int | None = None
    """The layer the cursor is at; None for none."""
    features: Mapping[str, str] = field(default_factory=dict)
    """Active features as the language writes them, to their labels; the nearest first."""
    emotions: tuple[str, ...] = ()
    appraisals: tuple[str, ...] = ()
    traces: Mapping[str, str] = field(default_factory=dict)
    """Open traces (`t1`, or an id) to what they are, in words."""
    recipes: Mapping[str, str] = field(default_factory=dict)
    """Saved recipes, without `@`, to what they hold."""
    words: tuple[str, ...] = ()
    """Words of the text, where a position may be one."""
    tokens: int = 0
    """Number of tokens of the prompt."""
    position: int | None = None
    """The cursor's token; None where there is no cursor."""


@dataclass(frozen=True)
class Completion:
    """A word that may stand in a line."""

    text: str
    """The whole word."""
    start: int
    end: int
    """The part of the line that it takes the place of: line[start:end]."""
    note: str = ""
    """What it is, uncleaned; may be empty."""

    def put_in(self, line: str) -> str:
        """Return the line with the word in its place."""
        return line[: self.start] + self.text + line[self.end :]


Choice = tuple[str, str]
"""A word and what it is."""
Choices = Callable[[EditContext, Sequence[str]], Iterable[Choice]]
"""What may stand in a slot, given what there is and the words before."""


@dataclass(frozen=True)
class Slot:
    """One place of a line: what words fit, and which are offered."""

    fits: Callable[[str], bool]
    choices: Choices
    optional: bool = False
    repeats: bool = False


def spans_of(line: str) -> list[tuple[int, int]]:
    """Return where the words of a line stand; an open quotation is one word."""
    return [match.span() for match in _SPAN.finditer(line)]


def completed(
    line: str, cursor: int, following: Callable[[Sequence[str]], Iterable[Choice]]
) -> list[Completion]:
    """Return what may stand at the cursor: those of `following(words before)` that begin so.

    A word that is there already is no completion of itself. The order is kept.
    """
    start, end = cursor, cursor
    before: list[str] = []
    for first, last in spans_of(line):
        if last < cursor:
            before.append(line[first:last])
        elif first < cursor:
            start, end = first, last
    typed = line[start:cursor].lower()
    return [
        Completion(text, start, end, note)
        for text, note in dict.fromkeys(following(before))
        if text.lower().startswith(typed) and text != line[start:end]
    ]


def edit_choices(before: Sequence[str], context: EditContext) -> list[Choice]:
    """Return the words an edit may go on with after those `before`, in a sensible order."""
    if not before:
        recipes = [(f"@{name}", note) for name, note in context.recipes.items()]
        return [*((name, note) for name, note in _OPERATIONS.items()), *recipes]
    patterns = _GRAMMAR.get(before[0].lower(), ())
    found: dict[str, str] = {}
    for pattern in patterns:
        for slot in _reached(pattern, before[1:]):
            for text, note in slot.choices(context, before):
                found.setdefault(text, note)
    return list(found.items())


def wrong_span(line: str, error: EmotuiError) -> tuple[int, int]:
    """Return the part of a line that an error is about; the line's end where a word is missing."""
    spans = spans_of(line)
    words = [line[start:end] for start, end in spans]
    wrong = error.word if isinstance(error, EditError) else None
    if not spans or wrong == "":
        return len(line), len(line) + 1
    if wrong is None:
        return spans[0][0], spans[-1][1]
    misfit = _first_misfit(words)
    if misfit < len(words) and words[misfit] == wrong:
        return spans[misfit]
    there = [span for span, word in zip(spans, words, strict=True) if word == wrong]
    if there:
        return there[-1]
    at = line.rfind(wrong)
    return (at, at + len(wrong)) if at >= 0 else (spans[0][0], spans[-1][1])


def _first_misfit(words: Sequence[str]) -> int:
    patterns = _GRAMMAR.get(words[0].lower(), ())
    if not patterns:
        return 0
    for count in range(1, len(words)):
        if not any(_states(pattern, words[1 : count + 1]) for pattern in patterns):
            return count
    return len(words)


def _states(pattern: Sequence[Slot], words: Sequence[str]) -> set[int]:
    """Return the slots that may come next once the words are read; empty where they do not fit.

    len(pattern) stands for the end.
    """
    states = _skipped(pattern, {0})
    for word in words:
        states = _skipped(
            pattern,
            {
                after
                for state in states
                if state < len(pattern) and pattern[state].fits(word)
                for after in ((state, state + 1) if pattern[state].repeats else (state + 1,))
            },
        )
    return states


def _skipped(pattern: Sequence[Slot], states: set[int]) -> set[int]:
    """Return the states and those reached by leaving optional slots out."""
    found = set(states)
    for state in sorted(states):
        while state < len(pattern) and pattern[state].optional:
            state += 1
            found.add(state)
    return found


def _reached(pattern: Sequence[Slot], words: Sequence[str]) -> list[Slot]:
    # Further on first: after one appraisal the layer is likelier than another appraisal.
    states = sorted(_states(pattern, words), reverse=True)
    return [pattern[state] for state in states if state < len(pattern)]


# The words of each slot.


def _plain(*words: str) -> Slot:
    known = frozenset(words)
    return Slot(lambda word: word.lower() in known, lambda _context, _before: _noted(words))


def _noted(words: Iterable[str], note: str = "") -> Iterable[Choice]:
    return [(word, note) for word in words]


def _features(context: EditContext, before: Sequence[str]) -> Iterable[Choice]:
    return [(name, label) for name, label in context.features.items() if name not in before]


def _windows(context: EditContext, _before: Sequence[str]) -> Iterable[Choice]:
    top = context.layers - 1
    if top < 0:
        return []
    here = context.layer
    found: list[Choice] = []
    if here is not None and 0 <= here <= top:
        found.append((f"L{here}", "the cursor's layer"))
        if here < top:
            found.append((f"L{here}-{top}", "from the cursor's layer up"))
    found += _noted(f"L{layer}" for layer in range(context.layers) if layer != here)
    if top > 0:
        found.append((f"L0-{top}", "every layer"))
    return found


def _heads(context: EditContext, before: Sequence[str]) -> Iterable[Choice]:
    layers = [word for word, _ in _windows(context, before) if "-" not in word]
    return _noted(f"{layer}.0" for layer in layers)


def _emotions(context: EditContext, _before: Sequence[str]) -> Iterable[Choice]:
    return _noted(context.emotions)


def _changes(context: EditContext, before: Sequence[str]) -> Iterable[Choice]:
    taken = {word.lstrip("+-") for word in before}
    free = [name for name in context.appraisals if name not in taken]
    return [*_noted((f"+{n}" for n in free), "raise"), *_noted((f"-{n}" for n in free), "lower")]


def _kept(context: EditContext, before: Sequence[str]) -> Iterable[Choice]:
    taken = {word.lstrip("+-") for word in before}
    return _noted((name for name in context.appraisals if name not in taken), "held fixed")


def _sources(context: EditContext, _before: Sequence[str]) -> Iterable[Choice]:
    return [*context.traces.items(), ('"another text"', "any text, in quotes")]


def _positions(context: EditContext, _before: Sequence[str]) -> Iterable[Choice]:
    if context.position is not None:
        yield "here", f"the cursor's token, {context.position}"
    yield "all", "every token of the text"
    yield "readout", "where the answer is read"
    yield "last", "the text's last token"
    yield from ((quoted(word), "wherever it stands") for word in context.words)
    yield from _noted((str(number) for number in range(context.tokens)), "a token")


def _at_readout_or_last(_context: EditContext, _before: Sequence[str]) -> Iterable[Choice]:
    return [("readout", "the source's readout"), ("last", "the last token of the source's text")]


def _is_position(word: str) -> bool:
    return (
        word in ("here", "all", "readout", "last")
        or bool(unquoted(word))
        or _RANGE.fullmatch(word) is not None
    )


def _is_change(word: str) -> bool:
    return word[:1] in "+-" and _NAME.fullmatch(word[1:]) is not None and not is_amount(word)


def _is_kept(word: str) -> bool:
    return _NAME.fullmatch(word) is not None and word.lower() != "at"


def _offered(*words: Choice) -> Choices:
    return lambda _context, _before: words


_FEATURE_SLOT = Slot(lambda word: _FEATURE.fullmatch(word) is not None, _features, repeats=True)
_WINDOW_SLOT = Slot(lambda word: _WINDOW.fullmatch(word) is not None, _windows)
_OPTIONAL_WINDOW = Slot(_WINDOW_SLOT.fits, _windows, optional=True)
_STRENGTH = Slot(
    lambda word: word[:1] in "+-" and _NUMBER.fullmatch(word) is not None,
    _offered(("+0.1", "of the mean norm there"), ("-0.1", "of the mean norm there"),
             ("+0.5", "of the mean norm there")),
)  # fmt: skip
_FACTOR = Slot(
    lambda word: word[:1] == "x" and _NUMBER.fullmatch(word[1:]) is not None,
    _offered(("x2", "times two"), ("x0.5", "half"), ("x-1", "its opposite")),
)
_EQUALS_NUMBER = Slot(
    lambda word: word[:1] == "=" and _NUMBER.fullmatch(word[1:]) is not None, _offered()
)
_NUMBER_SLOT = Slot(
    lambda word: _NUMBER.fullmatch(word) is not None,
    _offered(("1", "the activation"), ("10", "the activation"), ("30", "the activation")),
)
_KIND = Slot(
    lambda word: word.lower() in KNOCK_KINDS,
    _offered(("mean", "of the corpus"), ("zero", "nothing"), ("random", "of the same norm"),
             ("resample", "from another text")),
    optional=True,
)  # fmt: skip
_EMOTION = Slot(lambda word: _NAME.fullmatch(word.lower()) is not None, _emotions)
_CHANGE = Slot(_is_change, _changes, repeats=True)
_KEPT = Slot(_is_kept, _kept, repeats=True)
_SOURCE = Slot(lambda word: word.lower() != "at", _sources)
_AT = _plain("at")
_PLACE = Slot(_is_position, _positions)
_END = (_AT, _PLACE)
_ALONG = Slot(
    lambda word: word.lower() in ALONG,
    _offered(("means", "the mean of its texts less the others'"), ("row", "of the probe")),
)

_GRAMMAR: Mapping[str, tuple[tuple[Slot, ...], ...]] = MappingProxyType(
    {
        "ablate": ((_FEATURE_SLOT, *_END),),
        "scale": ((_FEATURE_SLOT, _FACTOR, *_END),),
        "clamp": (
            (_FEATURE_SLOT, _plain("="), _NUMBER_SLOT, *_END),
            (_FEATURE_SLOT, _EQUALS_NUMBER, *_END),
        ),
        "steer": ((_FEATURE_SLOT, _STRENGTH, *_END),),
        "knock": (
            (_plain("attn", "mlp"), _WINDOW_SLOT, _KIND, *_END),
            (
                _plain("head"),
                Slot(lambda word: re.fullmatch(r"L\d{1,4}\.\d{1,4}", word) is not None, _heads),
                _KIND,
                *_END,
            ),
        ),
        "patch": (
            (
                _plain("resid", "attn", "mlp"),
                _WINDOW_SLOT,
                _plain("from"),
                _SOURCE,
                _AT,
                Slot(lambda word: word in ("readout", "last"), _at_readout_or_last),
            ),
        ),
        "promote": (
            (_EMOTION, _WINDOW_SLOT, _STRENGTH, *_END),
            (_EMOTION, _WINDOW_SLOT, _STRENGTH, _plain("along"), _ALONG, *_END),
        ),
        "project": ((_plain("out"), _EMOTION, _OPTIONAL_WINDOW, *_END),),
        "modulate": (
            (_CHANGE, _WINDOW_SLOT, _STRENGTH, *_END),
            (_CHANGE, _WINDOW_SLOT, _STRENGTH, _plain("keep"), _KEPT, *_END),
            (_CHANGE, _WINDOW_SLOT, _STRENGTH, _plain("released"), _plain("keep"), _KEPT, *_END),
        ),
    }
)

_OPERATIONS: Mapping[str, str] = MappingProxyType(
    {
        "ablate": "a feature to 0",
        "scale": "a feature by a factor",
        "clamp": "a feature to a value",
        "steer": "along a feature",
        "knock": "out attention or MLP outputs, or a head",
        "patch": "from another trace, file or text",
        "promote": "an emotion",
        "project": "out an emotion",
        "modulate": "appraisals, others held fixed",
    }
)
assert set(_OPERATIONS) == set(_GRAMMAR) >= set(FEATURE_OPERATIONS)
