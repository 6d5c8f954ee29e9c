"""The edit language: printing and parsing are inverses; wrong words are named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emotui.core.edits import (
    ALL,
    READOUT,
    Edit,
    FeatureEdit,
    HeadEdit,
    JointEdit,
    KnockEdit,
    Layers,
    ModulateEdit,
    PatchEdit,
    Positions,
    ProjectEdit,
    PromoteEdit,
    Source,
    at_position,
    parse_edit,
    parse_positions,
    positions_in,
    recipe_named,
)
from emotui.core.edits.kinds import FeatureOperation
from emotui.core.errors import EditError
from emotui.core.records import Site, TextRecord, Token, TokenPart

finite = st.floats(allow_nan=False, allow_infinity=False, width=64)
positions = st.one_of(
    st.sampled_from([ALL, Positions("readout"), Positions("last")]),
    st.tuples(st.integers(0, 999), st.integers(0, 999)).map(
        lambda ends: Positions("range", min(ends), max(ends))
    ),
    st.text(min_size=1, max_size=12).map(lambda word: Positions("word", word=word)),
)
layers = st.integers(0, 99)
windows = st.tuples(layers, layers).map(lambda ends: Layers(min(ends), max(ends)))
names = st.sampled_from(["anger", "joy", "other_agency", "pleasantness", "self-control", "wut2"])
kinds = st.sampled_from(["zero", "mean", "random", "resample"])
texts = st.text(min_size=1, max_size=20)
sources = st.one_of(
    st.builds(Source, st.just("text"), texts.filter(lambda text: text.strip() != "")),
    st.builds(Source, st.just("file"), texts),
    st.builds(Source, st.just("trace"), st.text("0123456789abcdef", min_size=4, max_size=16)),
)
appraisals = st.lists(
    st.sampled_from(["pleasantness", "other_agency", "effort", "urgency"]),
    min_size=1,
    unique=True,
)


@st.composite
def modulations(draw: st.DrawFn) -> ModulateEdit:
    chosen = draw(appraisals)
    raised = draw(st.integers(1, len(chosen)))
    released = len(chosen) > raised and draw(st.booleans())
    signs = draw(st.lists(st.sampled_from("+-"), min_size=raised, max_size=raised))
    return ModulateEdit(
        tuple(sign + name for sign, name in zip(signs, chosen[:raised], strict=True)),
        draw(windows),
        draw(finite),
        tuple(chosen[raised:]),
        draw(positions),
        released,
    )


@st.composite
def joints(draw: st.DrawFn) -> JointEdit:
    kinds: tuple[FeatureOperation, ...] = ("ablate", "scale", "clamp", "steer")
    operation = draw(st.sampled_from(kinds))
    value = None if operation == "ablate" else draw(finite)
    where = draw(positions)
    every: tuple[Site, ...] = ("resid", "attn", "mlp")
    sites = st.sampled_from(every)
    places = draw(
        st.lists(
            st.tuples(sites, layers, st.integers(0, 9999)), min_size=2, max_size=5, unique=True
        )
    )
    features = (
        FeatureEdit(operation, site, layer, index, value, where) for site, layer, index in places
    )
    return JointEdit(tuple(features))


edits = st.one_of(
    joints(),
    st.builds(
        FeatureEdit,
        operation=st.just("ablate"),
        site=st.sampled_from(["resid", "attn", "mlp"]),
        layer=layers,
        index=st.integers(0, 999_999),
        value=st.none(),
        positions=positions,
    ),
    st.builds(
        FeatureEdit,
        operation=st.sampled_from(["scale", "clamp", "steer"]),
        site=st.sampled_from(["resid", "attn", "mlp"]),
        layer=layers,
        index=st.integers(0, 999_999),
        value=finite,
        positions=positions,
    ),
    st.builds(KnockEdit, st.sampled_from(["attn", "mlp"]), windows, kinds, positions),
    st.builds(HeadEdit, layers, st.integers(0, 999), kinds, positions),
    st.builds(
        PatchEdit,
        st.sampled_from(["resid", "attn", "mlp"]),
        windows,
        sources,
        st.sampled_from([READOUT, Positions("last")]),
    ),
    st.builds(PromoteEdit, names, windows, finite, positions, st.sampled_from(["means", "row"])),
    st.builds(ProjectEdit, names, st.one_of(st.none(), windows), positions),
    modulations(),
)


@given(edits)
def test_printing_and_parsing_are_inverses(edit: Edit) -> None:
    assert parse_edit(str(edit), default=None) == edit


@pytest.mark.parametrize(
    ("line", "printed"),
    [
        ("ablate L5/12", "ablate L5/12 at all"),
        ("ABLATE  mlp:L0/3   at last", "ablate mlp:L0/3 at last"),
        ("ablate L5/12 mlp:L3/9 at last", "ablate L5/12 mlp:L3/9 at last"),
        ("clamp L5/12 L6/1 =30", "clamp L5/12 L6/1 = 30 at all"),
        ("scale L5/12 x2.50 at 3-7", "scale L5/12 x2.5 at 3-7"),
        ("clamp L5/12 = 30 at all", "clamp L5/12 = 30 at all"),
        ("clamp L5/12 =30 at all", "clamp L5/12 = 30 at all"),
        ("steer L5/12 -0.1 at readout", "steer L5/12 -0.1 at readout"),
        ('ablate L5/12 at "lost toy"', 'ablate L5/12 at "lost toy"'),
        ("ablate L5/12 at here", "ablate L5/12 at 4"),
        ("knock attn L9-13 mean", "knock attn L9-13 mean at readout"),
        ("knock mlp L9", "knock mlp L9 mean at readout"),
        ("knock mlp L9-9 ZERO at all", "knock mlp L9 zero at all"),
        ("knock head L9.3 resample", "knock head L9.3 resample at readout"),
        ("knock head L9.3 at last", "knock head L9.3 mean at last"),
        ("patch resid L10 from t2 at readout", "patch resid L10 from 00c0ffee at readout"),
        ("patch attn L1-2 from 00C0FFEE", "patch attn L1-2 from 00c0ffee at readout"),
        ("patch mlp L1 from ./a.json at last", 'patch mlp L1 from file:"./a.json" at last'),
        ('patch mlp L1 from file:"a b" at last', 'patch mlp L1 from file:"a b" at last'),
        ('patch mlp L1 from "I won a prize."', 'patch mlp L1 from "I won a prize." at readout'),
        ("promote Anger L15 +0.1", "promote anger L15 +0.1 at readout"),
        ("promote anger L15 +0.1 along means at all", "promote anger L15 +0.1 at all"),
        ("promote anger L15 +.1 Along ROW", "promote anger L15 +0.1 along row at readout"),
        (
            "modulate +effort L2 +1 released keep urgency",
            "modulate +effort L2 +1 released keep urgency at readout",
        ),
        ("promote anger L14-15 -.5 at here", "promote anger L14-15 -0.5 at 4"),
        ("project out anger", "project out anger at readout"),
        ("project out anger L3-5 at all", "project out anger L3-5 at all"),
        (
            "modulate +other_agency -pleasantness L9-11 +0.1 keep predictability",
            "modulate +other_agency -pleasantness L9-11 +0.1 keep predictability at readout",
        ),
        ("modulate +effort L9 -1 at last", "modulate +effort L9 -1 at last"),
    ],
)
def test_canonical_form(line: str, printed: str) -> None:
    assert str(parse_edit(line, here=4, open_traces={"t2": "00c0ffee"})) == printed


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("", "nothing"),
        ("remove L5/12", "'remove'"),
        ("ablate", "nothing"),
        ("ablate 5/12", "'5/12'"),
        ("ablate head:L5/12", "'head:L5/12'"),
        ("scale L5/12", "nothing"),
        ("scale L5/12 2.5", "'2.5'"),
        ("scale L5/12 xinf", "'xinf'"),
        ("scale L5/12 xnan", "'xnan'"),
        ("clamp L5/12 30", "'30'"),
        ("clamp L5/12 =", "nothing"),
        ("steer L5/12 0.1", "'0.1'"),
        ("ablate L5/12 at", "nothing"),
        ("ablate L5/12 on all", "'on'"),
        ("ablate L5/12 at everywhere", "'everywhere'"),
        ("ablate L5/12 at 7-3", "'7-3'"),
        ("ablate L5/12 at 3 please", "'please'"),
        ("ablate L5/12 at here", "'here'"),
        ('ablate L5/12 at "lost', "'\"lost'"),
        ("knock", "nothing"),
        ("knock z L5", "'z'"),
        ("knock attn 5", "'5'"),
        ("knock attn L9-5", "'L9-5'"),
        ("knock attn L5 median", "'median'"),
        ("knock attn L5 mean all", "'all'"),
        ("knock head L5", "'L5'"),
        ("knock head 5.1", "'5.1'"),
        ("patch z L5", "'z'"),
        ("patch resid from t2", "'from'"),
        ("patch resid L5 of t2", "'of'"),
        ("patch resid L5 from", "nothing"),
        ("patch resid L5 from t3", "'t3'"),
        ("patch resid L5 from yesterday", "'yesterday'"),
        ('patch resid L5 from " "', '" "'),
        ('patch resid L5 from "abc" at all', "'all'"),
        ('patch resid L5 from "abc" at 3', "'3'"),
        ("promote", "nothing"),
        ("promote 7 L5 +0.1", "'7'"),
        ("promote anger +0.1", "'+0.1'"),
        ("promote anger L5 0.1", "'0.1'"),
        ("promote anger L5 +inf", "'+inf'"),
        ("promote anger L5 +0.1.2", "'+0.1.2'"),
        ("promote anger L5", "nothing"),
        ("promote anger L5 +1 along", "nothing"),
        ("promote anger L5 +1 along column", "'column'"),
        ("modulate +effort L2 +1 released", "nothing"),
        ("modulate +effort L2 +1 released at all", "'at'"),
        ("project anger", "'anger'"),
        ("project out", "nothing"),
        ("project out anger 5", "'5'"),
        ("modulate effort L5 +0.1", "'effort'"),
        ("modulate +0.1 L5", "'+0.1'"),
        ("modulate +effort +0.1", "'+0.1'"),
        ("modulate +effort L5", "nothing"),
        ("modulate +effort L5 +nan", "'+nan'"),
        ("modulate +effort L5 +0.1 keep", "nothing"),
        ("modulate +effort L5 +0.1 keep at all", "'at'"),
        ("modulate +effort L5 +0.1 keep -urgency", "'-urgency'"),
        ("modulate +effort L5 +0.1 keep effort", "'effort'"),
        ("modulate +effort -effort L5 +0.1", "'effort'"),
        ("ablate \x1b[31mL5/12", "\N{SYMBOL FOR ESCAPE}[31mL5/12"),
    ],
)
def test_wrong_words_are_named(line: str, word: str) -> None:
    with pytest.raises(EditError) as caught:
        parse_edit(line)
    assert word in caught.value.what
    assert caught.value.why.startswith("Expected ")
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("line", ["@", "@A", "@a b", "@-a", "@../a", "@" + "a" * 65])
def test_a_recipe_with_an_impossible_name_is_refused(line: str) -> None:
    with pytest.raises(EditError, match="a recipe"):
        recipe_named(line)


def test_a_recipe_is_told_from_an_edit() -> None:
    assert recipe_named(" @calm_down-2 ") == "calm_down-2"
    assert recipe_named("knock attn L5") is None


VOCABULARY = (
    "knock attn mlp head L9-13 L2 L9.3 mean zero at all readout patch resid from t2 00c0 promote "
    'project out anger +0.1 modulate +effort keep urgency "a text" file:x steer L1/2 here'
)
vocabulary = st.sampled_from(VOCABULARY.split())


@given(st.one_of(st.text(max_size=60), st.lists(vocabulary, max_size=9).map(" ".join)))
def test_any_line_parses_or_is_refused(line: str) -> None:
    try:
        edit = parse_edit(line)
    except EditError:
        return
    assert parse_edit(str(edit)) == edit


def record() -> TextRecord:
    def token(string: str, start: int | None, part: TokenPart) -> Token:
        end = None if start is None else start + len(string)
        return Token(0, string, start, end, part == "special", part)

    tokens = (
        token("<s>", None, "special"),
        token("The", 0, "text"),
        token(" lost", 3, "text"),
        token(" toy", 8, "text"),
        token(" The", None, "after"),
        token(" emotion", None, "after"),
    )
    return TextRecord("The lost toy", tokens, readout=5, last=3)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("all", (1, 2, 3)),
        ("last", (3,)),
        ("readout", (5,)),
        ("0", (0,)),
        ("2-4", (2, 3, 4)),
        ('"toy"', (3,)),
        ('"st t"', (2, 3)),
        ('"The"', (1,)),
    ],
)
def test_positions(word: str, expected: tuple[int, ...]) -> None:
    assert positions_in(parse_positions(word), record()) == expected


def test_positions_outside_the_prompt_are_refused() -> None:
    with pytest.raises(EditError, match="the last is 5"):
        positions_in(at_position(6), record())
    with pytest.raises(EditError, match="does not occur"):
        positions_in(Positions("word", word="emotion"), record())
