"""Reading the edit language: one line, one edit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from emotui.core.edits.kinds import (
    ALONG,
    FEATURE_OPERATIONS,
    KNOCK_KINDS,
    Along,
    Edit,
    FeatureEdit,
    FeatureOperation,
    HeadEdit,
    JointEdit,
    KnockEdit,
    KnockKind,
    ModulateEdit,
    PatchEdit,
    ProjectEdit,
    PromoteEdit,
    Source,
)
from emotui.core.edits.positions import ALL, READOUT, Positions, positions_at_end
from emotui.core.edits.words import (
    Layers,
    Reader,
    finite,
    is_amount,
    misread,
    split_words,
    unquoted,
)
from emotui.core.records import Site
from emotui.core.text import clean

OPERATIONS = (*FEATURE_OPERATIONS, "knock", "patch", "promote", "project", "modulate")
"""The first word of every edit."""

_SITES: dict[str, Site] = {"resid": "resid", "attn": "attn", "mlp": "mlp", "z": "z"}
_FEATURE = re.compile(r"(?:(resid|attn|mlp|z):)?L(\d{1,4})/(\d{1,9})")
_HEAD = re.compile(r"L(\d{1,4})\.(\d{1,4})")
_CHANGE = re.compile(r"[+-][^\W\d_][\w-]*")
_TRACE = re.compile(r"[0-9a-f]{4,16}")
_OPEN_TRACE = re.compile(r"t\d{1,6}")
_RECIPE = re.compile(r"@([a-z0-9][a-z0-9_-]{0,63})")


def parse_edit(
    line: str,
    *,
    default: Positions | None = ALL,
    here: int | None = None,
    open_traces: Mapping[str, str] | None = None,
) -> Edit:
    """Return the edit that a line says.

    `default` is where an edit of a feature without `at` acts (None: it must say); the others act
    at the readout. `here` is the cursor's token (None: there is no cursor); `open_traces` maps
    `t1`, `t2` ... to trace ids. Raises EditError that names the wrong word and what was expected.
    """
    words = Reader(split_words(line))
    operation = words.take().lower()
    if operation == "knock":
        return _knock(words, here)
    if operation == "patch":
        return _patch(words, here, open_traces or {})
    if operation == "promote":
        return _promote(words, here)
    if operation == "project":
        return _project(words, here)
    if operation == "modulate":
        return _modulate(words, here)
    for name in FEATURE_OPERATIONS:
        if operation == name:
            return _feature(name, words, default, here)
    first = split_words(line)[:1]
    raise misread(first[0] if first else "", "an edit", f"one of {', '.join(OPERATIONS)}")


def recipe_named(line: str) -> str | None:
    """Return the name in `@name`; None where the line is no recipe.

    EditError for a name that cannot be one: lower-case letters, digits, - and _ are.
    """
    word = line.strip()
    if not word.startswith("@"):
        return None
    match = _RECIPE.fullmatch(word)
    if match is None:
        raise misread(word, "a recipe", "@ and a name of lower-case letters, digits, - and _")
    return match[1]


def print_edits(edits: Sequence[Edit]) -> tuple[str, ...]:
    """Return the printed form of each edit, as traces and requests carry them."""
    return tuple(str(edit) for edit in edits)


def _at(words: Reader, here: int | None, default: Positions | None = READOUT) -> Positions:
    return positions_at_end(words.rest(), default=default, here=here)


def _window(words: Reader) -> Layers:
    layers = words.layers()
    assert layers is not None, "it was not optional"
    return layers


def _feature(
    operation: FeatureOperation, words: Reader, default: Positions | None, here: int | None
) -> FeatureEdit | JointEdit:
    named = []
    while (match := _FEATURE.fullmatch(words.word)) is not None:
        site, layer, index = match.groups()
        place = (_site(site), int(layer), int(index))
        if place in named:
            raise misread(words.word, "another feature", "each feature once")
        named.append(place)
        words.take()
    if not named:
        raise misread(words.word, "the feature", "a feature such as L18/4412 or mlp:L3/9")
    value = _amount(operation, words)
    positions = _at(words, here, default)
    parts = tuple(FeatureEdit(operation, *place, value, positions) for place in named)
    return parts[0] if len(parts) == 1 else JointEdit(parts)


def _site(word: str | None) -> Site:
    return _SITES.get(word or "resid", "resid")


def _amount(operation: FeatureOperation, words: Reader) -> float | None:
    """Return the number of an edit of a feature; None for one that has none."""
    if operation == "ablate":
        return None
    if operation == "steer":
        return words.strength()
    if operation == "clamp" and words.word == "=":
        words.take()
        shape, word = "a number such as 30", words.take()
    else:
        scales = operation == "scale"
        shape = "a factor such as x2.5" if scales else "= and a number, as in `= 30`"
        word = words.take()
        if not word.startswith("x" if scales else "="):
            raise misread(word, "the amount", shape)
    if not word:
        raise misread("", "the amount", shape)
    return finite(word, word.lstrip("x="), shape)


def _knock(words: Reader, here: int | None) -> KnockEdit | HeadEdit:
    what = words.take()
    if what == "head":
        match = _HEAD.fullmatch(words.word)
        if match is None:
            raise misread(words.word, "the head", "a layer and a head such as L9.3")
        words.take()
        kind = _kind(words)
        return HeadEdit(int(match[1]), int(match[2]), kind, _at(words, here))
    if what not in ("attn", "mlp"):
        raise misread(what, "what is knocked out", "attn, mlp or head")
    layers = _window(words)
    kind = _kind(words)
    return KnockEdit("attn" if what == "attn" else "mlp", layers, kind, _at(words, here))


def _kind(words: Reader) -> KnockKind:
    """Return how something is knocked out; the mean where that is not said (METHODS 1.5)."""
    if words.word.lower() in ("", "at"):
        return "mean"
    for kind in KNOCK_KINDS:
        if words.word.lower() == kind:
            words.take()
            return kind
    raise misread(words.word, "the kind of knock-out", f"{', '.join(KNOCK_KINDS)}, or at")


def _patch(words: Reader, here: int | None, open_traces: Mapping[str, str]) -> PatchEdit:
    site = words.take()
    if site not in ("resid", "attn", "mlp"):
        raise misread(site, "the site", "resid, attn or mlp")
    layers = _window(words)
    if words.word.lower() != "from":
        raise misread(words.word, "`from`", 'from and a trace, a file or "another text"')
    words.take()
    source = _source(words.take(), open_traces)
    positions = _at(words, here)
    if positions.kind not in ("readout", "last"):
        raise misread(
            str(positions),
            "the position",
            "readout or last: no other position means the same in two texts",
        )
    return PatchEdit(_site(site), layers, source, positions)


def _source(word: str, open_traces: Mapping[str, str]) -> Source:
    what = 'an open trace such as t2, the id of a trace, a file, or "another text"'
    text = unquoted(word)
    if text is not None:
        if not text.strip():
            raise misread(word, "the source", "a text that is not empty")
        return Source("text", text)
    if word in open_traces:
        return Source("trace", open_traces[word])
    if _OPEN_TRACE.fullmatch(word):
        there = ", ".join(open_traces) or "none is open here; give an id, a file or a text"
        raise misread(word, "the source", f"an open trace ({there})")
    if _TRACE.fullmatch(word.lower()):
        return Source("trace", word.lower())
    named = word.removeprefix("file:")
    path = unquoted(named) if named.startswith('"') else named
    if not path:
        raise misread(word, "the source", what)
    if word.startswith("file:") or "/" in path or "." in path:
        return Source("file", path)
    raise misread(word, "the source", what)


def _promote(words: Reader, here: int | None) -> PromoteEdit:
    emotion = words.name("the emotion", "an emotion such as anger")
    layers = _window(words)
    value = words.strength()
    along = _along(words)
    return PromoteEdit(emotion, layers, value, _at(words, here), along)


def _along(words: Reader) -> Along:
    """Return which direction an emotion is promoted along; the means where that is not said."""
    if words.word.lower() != "along":
        return "means"
    words.take()
    for name in ALONG:
        if words.word.lower() == name:
            words.take()
            return name
    raise misread(words.word, "the direction", "means (of the corpus) or row (of the probe)")


def _project(words: Reader, here: int | None) -> ProjectEdit:
    if words.word.lower() != "out":
        raise misread(words.word, "`out`", "out and an emotion, as in `project out anger`")
    words.take()
    emotion = words.name("the emotion", "an emotion such as anger")
    layers = words.layers(optional=True)
    return ProjectEdit(emotion, layers, _at(words, here))


def _modulate(words: Reader, here: int | None) -> ModulateEdit:
    raised: list[str] = []
    while _CHANGE.fullmatch(words.word.lower()) and not is_amount(words.word):
        raised.append(words.take().lower())
    if not raised:
        raise misread(words.word, "an appraisal", "one with its sign, such as +other_agency")
    layers = _window(words)
    value = words.strength()
    released = words.word.lower() == "released"
    if released:
        words.take()
        if words.word.lower() != "keep":
            raise misread(
                words.word,
                "`keep`",
                "keep and an appraisal: the release differs in nothing where none is kept",
            )
    keep: list[str] = []
    if words.word.lower() == "keep":
        words.take()
        while words.word.lower() not in ("", "at"):
            keep.append(words.name("an appraisal to keep", "a name such as predictability, or at"))
        if not keep:
            raise misread(words.word, "an appraisal to keep", "a name such as predictability")
    positions = _at(words, here)
    names = [name.lstrip("+-") for name in raised] + keep
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise misread(clean(twice), "another appraisal", "each appraisal once")
    return ModulateEdit(tuple(raised), layers, value, tuple(keep), positions, released)
