"""A trace as panes ask for it: which number stands at a site, position, layer and emotion."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property

from emotui.core.agreement import Said, said_from
from emotui.core.findings import Verification
from emotui.core.records import (
    EMBEDDING_LAYER,
    ProbeKind,
    ProbeSummary,
    Site,
    Token,
    Trace,
    Trust,
)
from emotui.ui.paint import visible

SITES: tuple[Site, ...] = ("resid", "attn", "mlp", "z")


@dataclass(frozen=True)
class Cell:
    """One readout."""

    z: float
    """In standard deviations of neutral texts; the probe's own value where there are none."""
    standardised: bool
    """Whether `z` is a z score."""
    trust: Trust
    hollow: bool
    """Read where its probe was not fitted to be read."""
    by_construction: bool
    marked: bool
    """Above what a neutral text of like length reaches."""

    @property
    def shade(self) -> float:
        """What the ramp shows: z, and nothing of a number that is none."""
        return self.z if self.standardised else 0.0


@dataclass(frozen=True)
class FeatureRow:
    """One active feature at a site, layer and position."""

    sae: str
    site: Site
    layer: int
    index: int
    activation: float
    attribution: float | None
    label: str

    @property
    def name(self) -> str:
        """The feature as the edit language writes it."""
        place = f"L{self.layer}/{self.index}"
        return place if self.site == "resid" else f"{self.site}:{place}"


class Readings:
    """An index over one trace; built once, then only read."""

    def __init__(
        self,
        trace: Trace,
        verification: Verification | None = None,
        *,
        parent: Readings | None = None,
    ) -> None:
        self.trace = trace
        self.parent = parent
        """Of the trace without the last edit; None where there is none, or it is not there."""
        self.verification = verification
        """The last edit on other texts, where the cache had that."""
        self.probes: dict[str, ProbeSummary] = {probe.id: probe for probe in trace.probes}
        readouts = trace.readouts
        self._rows: dict[tuple[str, str, int], dict[tuple[int, str], int]] = {}
        places = zip(
            readouts.probe, readouts.site, readouts.position, readouts.layer, readouts.emotion,
            strict=True,
        )  # fmt: skip
        for row, (probe, site, position, layer, emotion) in enumerate(places):
            self._rows.setdefault((probe, site, position), {})[layer, emotion] = row
        # Of a long text there are half a million features: rows are made where they are looked at.
        features = trace.features
        self._feature_rows: dict[tuple[Site, int, int], list[int]] = {}
        places_of_features = zip(features.site, features.layer, features.position, strict=True)
        for row, at in enumerate(places_of_features):
            self._feature_rows.setdefault(at, []).append(row)
        self.largest_activation: dict[tuple[str, int], float] = {}
        """The largest activation of this text for each SAE and layer, for the bars."""
        largest = self.largest_activation
        for sae_layer, activation in zip(
            zip(features.sae, features.layer, strict=True), features.activation, strict=True
        ):
            if activation > largest.get(sae_layer, 0.0):
                largest[sae_layer] = activation

    def alone(self) -> Readings:
        """Return the same without the parent."""
        other = copy(self)
        other.parent = None
        return other

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens of the whole prompt."""
        return self.trace.text.tokens

    @cached_property
    def token_texts(self) -> tuple[str, ...]:
        """The tokens as they may be painted."""
        return tuple(visible(token.string) for token in self.tokens)

    @cached_property
    def emotions(self) -> tuple[str, ...]:
        """The emotions of the probes in force, in the order of their label set."""
        found = dict.fromkeys(emotion for probe in self.trace.probes for emotion in probe.emotions)
        if not found:
            found = dict.fromkeys(self.trace.readouts.emotion)
        return tuple(found)

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """The sites with readouts or features."""
        present = set(self.trace.readouts.site) | set(self.trace.features.site)
        return tuple(site for site in SITES if site in present) or ("resid",)

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """All layers from the top down, the embedding row last."""
        layers = range(self.trace.run.layers - 1, -1, -1)
        has_row = any(layer == EMBEDDING_LAYER for layer in self.trace.readouts.layer)
        return (*layers, EMBEDDING_LAYER) if has_row else tuple(layers)

    def probe_at(
        self, site: Site, position: int, emotion: str | None = None
    ) -> ProbeSummary | None:
        """Return the probe to read a position with: of the kind fitted there where there is one.

        `emotion` names one that it must tell: those that a user defined have probes of their own.
        """
        wanted: ProbeKind = "readout" if position == self.trace.text.readout else "token"
        here = [
            probe
            for probe in self.trace.probes
            if (probe.id, site, position) in self._rows
            and (emotion is None or emotion in probe.emotions)
        ]
        return next((probe for probe in here if probe.kind == wanted), next(iter(here), None))

    def cell(self, site: Site, position: int, layer: int, emotion: str) -> Cell | None:
        """Return one readout; None where there is none."""
        probe = self.probe_at(site, position, emotion)
        row = self._rows[probe.id, site, position].get((layer, emotion)) if probe else None
        if probe is None or row is None:
            return None
        readouts = self.trace.readouts
        z, mark = readouts.z[row], readouts.mark[row]
        above = probe.marked_above.get(site)
        return Cell(
            z=readouts.value[row] if z is None else z,
            standardised=z is not None,
            trust=readouts.trust[row],
            hollow=mark == "outside",
            by_construction=mark == "by_construction",
            marked=z is not None and above is not None and z > above and mark == "",
        )

    def features(self, site: Site, layer: int, position: int) -> Sequence[FeatureRow]:
        """Return the active features there, largest activation first."""
        columns = self.trace.features
        rows = [
            FeatureRow(
                columns.sae[row], site, layer, columns.index[row],
                columns.activation[row], columns.attribution[row], columns.label[row],
            )
            for row in self._feature_rows.get((site, layer, position), ())
        ]  # fmt: skip
        return sorted(rows, key=lambda row: (-row.activation, row.index))

    def feature_layers(self, site: Site) -> tuple[int, ...]:
        """Return the layers of a site that have an SAE, from the bottom up."""
        return tuple(sorted({reading.layer for reading in self.trace.saes if reading.site == site}))

    def lens_at(self, position: int) -> bool:
        """Return whether the logit lens was read at a position: only ever at the readout."""
        return self.trace.lens is not None and position == self.trace.text.readout

    @cached_property
    def _lens(self) -> dict[int, list[tuple[str, float]]]:
        found: dict[int, list[tuple[str, float]]] = {}
        lens = self.trace.lens
        if lens is not None:
            for layer, token, probability in zip(
                lens.layer, lens.token, lens.probability, strict=True
            ):
                found.setdefault(layer, []).append((token, probability))
        return found

    def lens(self, layer: int) -> Sequence[tuple[str, float]]:
        """Return the likeliest next tokens at the readout and their probabilities, best first."""
        return self._lens.get(layer, ())

    def said(self, position: int, layer: int) -> Said:
        """Return what is read, ranked by the lens and answered at a token and layer."""
        rows = {
            (probe.id, layer): [
                row
                for (at, _), row in self._rows.get((probe.id, "resid", position), {}).items()
                if at == layer
            ]
            for probe in self.trace.probes
        }
        return said_from(self.trace, position, layer, rows)

    @cached_property
    def all_standardised(self) -> bool:
        """Whether every readout has a z, the embedding's aside; else a probe gives logits alone.

        The embedding of a template's last token is the same after every text, and has none.
        """
        columns = self.trace.readouts
        found = zip(columns.layer, columns.z, strict=True)
        return all(z is not None for layer, z in found if layer != EMBEDDING_LAYER)

    def trust_of(self, site: Site, position: int, layer: int) -> Trust | None:
        """Return the verdict on the probe in force at a layer; None without one."""
        for emotion in self.emotions:
            cell = self.cell(site, position, layer, emotion)
            if cell is not None:
                return cell.trust
        return None

    def start(self) -> tuple[int, str]:
        """Return a layer and an emotion worth showing first.

        The layer: the middle one of those trusted at the readout, else two thirds of the way up.
        The emotion: the model's own answer where a probe knows it, else the largest readout.
        """
        readout, site = self.trace.text.readout, self.sites[0]
        trusted = [
            layer
            for layer in self.layers
            if layer >= 0 and self.trust_of(site, readout, layer) == "trusted"
        ]
        count = self.trace.run.layers
        layer = trusted[len(trusted) // 2] if trusted else min(count - 1, (2 * count) // 3)
        answer = self.trace.answer
        if answer is not None:
            known = [emotion for emotion in answer.labels if emotion in self.emotions]
            if known:
                return layer, max(known, key=lambda emotion: answer.labels[emotion])
        cells = {emotion: self.cell(site, readout, layer, emotion) for emotion in self.emotions}
        read = {emotion: cell for emotion, cell in cells.items() if cell is not None}
        # A logit is not compared with a z.
        alike = {emotion: cell for emotion, cell in read.items() if cell.standardised} or read
        found = {emotion: cell.z for emotion, cell in alike.items()}
        return layer, max(found, key=lambda emotion: found[emotion]) if found else ""
