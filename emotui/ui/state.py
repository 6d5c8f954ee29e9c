"""What the screen shows, as one frozen value, and how keys change it. No widgets here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from textual.theme import Theme

from emotui.cache.session import Session
from emotui.core.errors import EmotuiError
from emotui.core.findings import Verification
from emotui.core.phases import phases_of
from emotui.core.protocol import InspectRequest
from emotui.core.records import Note, Site, Token, Trace, Where
from emotui.themes import DARK
from emotui.ui.actions import ACTIONS, Action
from emotui.ui.readings import FeatureRow, Readings

MapView = Literal["emotions", "tokens"]
NoticeKind = Literal["hint", "good", "error"]
Sorting = Literal["activation", "attribution", "number"]
_Word = TypeVar("_Word", bound=str)
SORTINGS: tuple[Sorting, ...] = ("activation", "attribution", "number")


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """What the explorer is opened with."""

    request: InspectRequest
    """The text ("" opens the editor), the model, SAEs, template, label set, and the cache."""
    theme: str = DARK
    themes: tuple[Theme, ...] = ()
    """The user's own."""
    mouse: bool = True
    coloured: bool = True
    """False where NO_COLOR is set."""
    private: bool = False
    actions: tuple[Action, ...] = ACTIONS
    """The table in force, with the user's keys."""
    session: Session | None = None
    """Where the explorer was left, to go on there; None begins with the request's text."""


@dataclass(frozen=True)
class Work:
    """Work in progress."""

    what: str
    phase: str = ""
    done: int = 0
    total: int = 0
    """0 where it is not known."""
    seconds_left: float | None = None
    """Of this phase; None where it is not known."""


@dataclass(frozen=True)
class Notice:
    """One message to the user, until the next."""

    kind: NoticeKind
    lines: tuple[str, ...]
    """What happened, why, what to do; uncleaned."""

    @classmethod
    def of_error(cls, error: EmotuiError) -> Notice:
        """Return an error as a notice."""
        return cls("error", tuple(part for part in (error.what, error.why, error.todo) if part))


@dataclass(frozen=True)
class Other:
    """A text that is not the one on the screen."""

    name: str
    """As the edit language calls its trace: `t1`, or an id."""
    raw: str


@dataclass(frozen=True)
class Visit:
    """A trace that was on the screen in this session."""

    name: str
    """As the edit language calls it: `t1`, `t2` ..."""
    id: str
    fingerprint: str
    """Of its model."""
    what: str
    """Its edits and its text, uncleaned."""


@dataclass(frozen=True, kw_only=True)
class ScreenState:
    """Everything the panes draw."""

    text: str
    """The text that is being read or was read, uncleaned."""
    readings: Readings | None = None
    """Of the trace on the screen; None before the first."""
    position: int = 0
    """The cursor's token."""
    before: int = 0
    """The cursor's token before it was sent to the readout."""
    layer: int = 0
    site: Site = "resid"
    emotion: str = ""
    view: MapView = "emotions"
    sorting: Sorting = "activation"
    feature: int = 0
    """The cursor's row among the features."""
    cached: bool = False
    seconds: float | None = None
    work: Work | None = None
    notice: Notice | None = None
    draft: bool = False
    """Whether the editor holds another text than the one on the screen."""
    features: tuple[FeatureRow, ...] = field(default=())
    """Those at the cursor, sorted."""
    where: Where | None = None
    """What was told last; it may be of another text or emotion."""
    marks: tuple[str, ...] = ()
    """Features that are edited together, as the edit language writes them, in order of marking."""
    notes: tuple[Note, ...] = ()
    """What the user wrote beside the trace on the screen, the oldest first."""
    visits: tuple[Visit, ...] = ()
    """The traces of this session, the first one first."""
    other: Other | None = None
    """The other text that was on the screen, or compared with it, last."""
    verification: Verification | None = None
    """The last edit of the trace on the screen repeated on other texts."""


def _clamped(index: int, count: int) -> int:
    return max(0, min(index, count - 1))


def _stepped(values: Sequence[_Word], now: _Word, by: int, *, around: bool) -> _Word:
    if not values:
        return now
    place = values.index(now) if now in values else 0
    place = (place + by) % len(values) if around else _clamped(place + by, len(values))
    return values[place]


def _settled(state: ScreenState) -> ScreenState:
    """Return the state with the features of its place."""
    if state.readings is None:
        return state
    rows = list(state.readings.features(state.site, state.layer, state.position))
    if state.sorting == "number":
        rows.sort(key=lambda row: row.index)
    elif state.sorting == "attribution":
        rows.sort(key=lambda row: -abs(row.attribution or 0.0))
    return replace(state, features=tuple(rows), feature=_clamped(state.feature, len(rows)))


def shown(
    state: ScreenState,
    readings: Readings,
    *,
    cached: bool,
    seconds: float,
    notes: Sequence[Note] = (),
) -> ScreenState:
    """Return the state with another trace; the place is kept where the trace has it.

    Marks of features stay on the same text. `notes` are those on this trace.
    """
    former, tokens = state.readings, readings.tokens
    layer, emotion = readings.start()
    text = readings.trace.text
    position = text.readout
    if former is not None:
        layer = state.layer if state.layer in readings.layers else layer
        same_text = former.trace.text.tokens == tokens
        if same_text:
            position = state.position
        elif state.position == former.trace.text.last:
            position = text.last
        if same_text and former.emotions and state.emotion in readings.emotions:
            emotion = state.emotion
    fresh = replace(
        state,
        text=text.raw,
        readings=readings,
        position=position,
        before=_clamped(state.before, len(tokens)),
        layer=layer,
        site=state.site if state.site in readings.sites else readings.sites[0],
        emotion=emotion,
        cached=cached,
        seconds=seconds,
        notice=None,
        marks=state.marks if former is not None and _same_run(former, readings) else (),
        notes=tuple(notes),
        visits=_visited(state.visits, readings.trace),
        other=_left(state, readings.trace),
        verification=readings.verification,
    )
    return _settled(fresh)


def _same_run(one: Readings, other: Readings) -> bool:
    """Return whether features of one are features of the other, at the same tokens."""
    same_model = one.trace.run.fingerprint == other.trace.run.fingerprint
    return same_model and one.trace.text.raw == other.trace.text.raw


def _left(state: ScreenState, trace: Trace) -> Other | None:
    """Return the text that a trace takes the place of; the one before that where it is the same."""
    former = None if state.readings is None else state.readings.trace
    if former is None or former.text.raw == trace.text.raw:
        return state.other
    name = next((visit.name for visit in state.visits if visit.id == former.id), former.id)
    return Other(name, former.text.raw)


def _visited(visits: tuple[Visit, ...], trace: Trace) -> tuple[Visit, ...]:
    """Return the visits with this trace; read again with other probes it keeps its name."""
    edits = f"{'; '.join(trace.edits)} · " if trace.edits else ""
    what = f"{edits}{trace.text.raw}"
    place = next(
        (
            index
            for index, visit in enumerate(visits)
            if (visit.fingerprint, visit.what) == (trace.run.fingerprint, what)
        ),
        len(visits),
    )
    visit = Visit(f"t{place + 1}", trace.id, trace.run.fingerprint, what)
    return (*visits[:place], visit, *visits[place + 1 :])


def with_mark(state: ScreenState) -> ScreenState:
    """Return the state with the feature under the cursor marked, or no longer."""
    if not state.features:
        return state
    name = state.features[state.feature].name
    if name in state.marks:
        return replace(state, marks=tuple(mark for mark in state.marks if mark != name))
    return replace(state, marks=(*state.marks, name))


def session_of(state: ScreenState) -> Session | None:
    """Return what it takes to come back to this place; None before the first trace."""
    if state.readings is None:
        return None
    return Session(
        trace=state.readings.trace.id,
        position=state.position,
        layer=state.layer,
        site=state.site,
        emotion=state.emotion,
        view=state.view,
        sorting=state.sorting,
    )


def placed(state: ScreenState, session: Session) -> ScreenState:
    """Return the state at a session's place, as far as its trace has it."""
    readings = state.readings
    if readings is None:
        return state
    place = replace(
        state,
        position=_clamped(session.position, len(readings.tokens)),
        layer=session.layer if session.layer in readings.layers else state.layer,
        site=session.site if session.site in readings.sites else state.site,
        emotion=session.emotion if session.emotion in readings.emotions else state.emotion,
        view="tokens" if session.view == "tokens" else "emotions",
        sorting=next((known for known in SORTINGS if known == session.sorting), state.sorting),
    )
    return _settled(place)


def at_token(state: ScreenState, position: int) -> ScreenState:
    """Return the state with the cursor on a token, as far as there is one."""
    if state.readings is None:
        return state
    place = _clamped(position, len(state.readings.tokens))
    return _settled(replace(state, position=place, feature=0)) if place != state.position else state


def token_by(state: ScreenState, by: int) -> ScreenState:
    """Return the state with the cursor `by` tokens further."""
    return at_token(state, state.position + by)


def at_layer(state: ScreenState, layer: int) -> ScreenState:
    """Return the state with the cursor on a layer, where the trace has it."""
    if state.readings is None or layer not in state.readings.layers:
        return state
    return _settled(replace(state, layer=layer, feature=0))


def layer_by(state: ScreenState, by: int) -> ScreenState:
    """Return the state with the cursor `by` layers higher."""
    if state.readings is None:
        return state
    layers = state.readings.layers
    place = layers.index(state.layer) if state.layer in layers else 0
    layer = layers[_clamped(place - by, len(layers))]
    return _settled(replace(state, layer=layer, feature=0))


def emotion_by(state: ScreenState, by: int, *, around: bool = True) -> ScreenState:
    """Return the state with another emotion chosen."""
    if state.readings is None:
        return state
    chosen = _stepped(state.readings.emotions, state.emotion, by, around=around)
    return replace(state, emotion=chosen)


def at_cell(state: ScreenState, layer: int, column: int) -> ScreenState:
    """Return the state with the cursor on a layer and on a column of the view in force."""
    if state.readings is None or layer not in state.readings.layers:
        return state
    emotions = state.readings.emotions
    state = _settled(replace(state, layer=layer, feature=0))
    if state.view == "tokens":
        return at_token(state, column)
    return replace(state, emotion=emotions[_clamped(column, len(emotions))]) if emotions else state


def feature_by(state: ScreenState, by: int) -> ScreenState:
    """Return the state with the cursor `by` features further down."""
    return replace(state, feature=_clamped(state.feature + by, len(state.features)))


def next_site(state: ScreenState) -> ScreenState:
    """Return the state with the next site that the trace has."""
    if state.readings is None:
        return state
    sites = state.readings.sites
    site = sites[(sites.index(state.site) + 1) % len(sites)] if state.site in sites else sites[0]
    return _settled(replace(state, site=site, feature=0))


def next_position(state: ScreenState) -> ScreenState:
    """Return the state with the cursor on the readout, the last token, or where it was before."""
    if state.readings is None:
        return state
    text = state.readings.trace.text
    if state.position == text.readout and state.readings.trace.text.last != text.readout:
        return at_token(state, text.last)
    if state.position == text.last and state.before not in (text.last, text.readout):
        return at_token(state, state.before)
    return at_token(replace(state, before=state.position), text.readout)


def next_view(state: ScreenState) -> ScreenState:
    """Return the state with the other view of the layers."""
    return replace(state, view="tokens" if state.view == "emotions" else "emotions")


def next_sorting(state: ScreenState) -> ScreenState:
    """Return the state with the features in another order."""
    has_attribution = any(row.attribution is not None for row in state.features)
    choices: tuple[Sorting, ...] = SORTINGS if has_attribution else ("activation", "number")
    return _settled(replace(state, sorting=_stepped(choices, state.sorting, 1, around=True)))


def phases(state: ScreenState) -> tuple[str, ...]:
    """Return R, U and W for each layer from 0: the chosen emotion is readable, used, written there.

    () unless that was told of this text and emotion, and nothing is edited.
    """
    where, readings = state.where, state.readings
    if where is None or readings is None or readings.trace.edits:
        return ()
    if where.emotion != state.emotion or where.text != readings.trace.text:
        return ()
    return tuple(layer.letters for layer in phases_of(where))


def place_name(state: ScreenState) -> str:
    """Return the cursor's position in the words of the edit language, or its number."""
    if state.readings is None:
        return "-"
    text = state.readings.trace.text
    if state.position == text.readout:
        return "readout"
    return "last" if state.position == text.last else f"token {state.position}"


def part_of(token: Token) -> str:
    """Return where a token comes from, in words."""
    if token.special:
        return "special"
    return {"text": "text", "before": "template", "after": "template"}.get(token.part, "special")
