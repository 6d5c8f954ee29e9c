"""Where an emotion is readable, used and written: the rules, from the numbers of a `Where`."""

from __future__ import annotations

from dataclasses import dataclass

from emotui.core.records import Where, WhereWriter

USED_SHARE = 0.5
"""Least share of the margin that must move for a layer to count as used."""
CONTROL_SHARE = 0.5
"""Largest size of a control beside the effect, for it to count as the emotion's."""
MAIN_SHARE = 0.1
"""Least share of the margin above neutral that an output must carry to be named."""


@dataclass(frozen=True)
class Phases:
    """What holds at one layer."""

    readable: bool
    """The probe's z is above what neutral texts of this length reach."""
    used: bool
    """Half the margin moves with neutral texts, and twice what it moves with the control."""
    written: bool
    """An attention or MLP output of this layer is one that the emotion is written by."""

    @property
    def letters(self) -> str:
        """Return R, U and W in three cells, a dot where it does not hold."""
        holds = (self.readable, self.used, self.written)
        return "".join(letter if held else "·" for letter, held in zip("RUW", holds, strict=True))


def beats(effect: float, control: float | None) -> bool:
    """Return whether an effect is at least twice its control; without one it is."""
    return control is None or abs(control) <= CONTROL_SHARE * effect


def is_used(span: float, moved: float, control: float | None) -> bool:
    """Return whether a layer is used; `span` is the margin above that of neutral texts."""
    return span > 0 and moved >= USED_SHARE and beats(moved, control)


def is_readable(z: float | None, null: float | None) -> bool:
    """Return whether a layer is readable."""
    return z is not None and null is not None and z > null


def is_main(writer: WhereWriter, span: float) -> bool:
    """Return whether an output is one that the emotion is written by."""
    return writer.exact >= MAIN_SHARE * span > 0 and beats(writer.exact, writer.control)


def phases_of(where: Where) -> tuple[Phases, ...]:
    """Return what holds at each layer from 0."""
    columns, span = where.layers, where.margin - where.neutral_margin
    main = {writer.layer for writer in where.writers if is_main(writer, span)}
    return tuple(
        Phases(
            readable=is_readable(columns.z[layer], where.null),
            used=is_used(span, columns.moved[layer], columns.control[layer]),
            written=layer in main,
        )
        for layer in columns.layer
    )
