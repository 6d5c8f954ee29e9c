"""What edits are made of: replacements from the corpus, probe rows, appraisals, other runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emotui.core.edits import (
    STAYED,
    FeatureEdit,
    HeadEdit,
    KnockEdit,
    KnockKind,
    ModulateEdit,
    PatchEdit,
    PromoteEdit,
    Source,
    positions_in,
)
from emotui.core.engine.sites import HookSite
from emotui.core.engine.steps import RandomStep, SetStep
from emotui.core.errors import EditError
from emotui.core.records import TextRecord
from emotui.core.text import Template, clean

if TYPE_CHECKING:
    from emotui.cache.store import Store
    from emotui.core.engine.appraisals import Appraisals
    from emotui.core.engine.capture import Activations, Job
    from emotui.core.engine.emotion_means import EmotionMeans
    from emotui.core.engine.model import LoadedModel
    from emotui.core.engine.probes import Probe
    from emotui.core.engine.saes import Sae
    from emotui.core.engine.statistics import Kind, Statistics

Other = tuple["Activations", TextRecord]
"""Another run of the same model, and its text."""


class Materials:
    """What the edits of one text may ask for, read when it is first asked for."""

    def __init__(
        self,
        model: LoadedModel,
        store: Store,
        *,
        text: TextRecord,
        template: Template,
        saes: Sequence[Sae],
        probes: Sequence[Probe],
        other: Callable[[Source], Other],
        seed: int,
        job: Job,
    ) -> None:
        self.model = model
        self.text = text
        self.seed = seed
        self.probe = next((probe for probe in probes if probe.kind == "readout"), None)
        """The readout probe; None where none is in force."""
        self._store = store
        self._template = template
        self.saes = saes
        self._other = other
        self._others: dict[Source, Other] = {}
        self._job = job

    def seeded(self, seed: int) -> Materials:
        """Return the same materials drawing with another seed."""
        other = copy(self)
        other.seed = seed
        return other

    @cached_property
    def statistics(self) -> Statistics:
        """The corpus at the residual stream, attention and MLP outputs."""
        return self._statistics("resid", "attn", "mlp")

    @cached_property
    def head_statistics(self) -> Statistics:
        """The corpus at the input of the output projections of attention."""
        return self._statistics("z")

    @cached_property
    def appraisals(self) -> Appraisals:
        """The appraisal directions of this model and template."""
        from emotui.core.engine.appraisals import appraisal_directions

        return appraisal_directions(self.model, self._template, self._store, self._job)

    @cached_property
    def emotion_means(self) -> EmotionMeans:
        """What stands at the readout after texts of each emotion."""
        from emotui.core.engine.emotion_means import emotion_means

        return emotion_means(self.model, self._template, self._store, self._job)

    def _statistics(self, *sites: HookSite) -> Statistics:
        from emotui.core.engine.statistics import corpus_statistics

        return corpus_statistics(self.model, self._template, self._store, self._job, sites=sites)

    def statistics_of(self, site: HookSite) -> Statistics:
        """Return the corpus at a site."""
        return self.head_statistics if site == "z" else self.statistics

    def sae_of(self, edit: FeatureEdit) -> Sae:
        """Return the SAE of an edit's feature; EditError where there is none so wide."""
        place = (edit.site, edit.layer)
        reading = [one for one in self.saes if (one.site, one.layer) == place]
        if len(reading) > 1:
            raise EditError(
                f"{edit.feature} could be a feature of several SAEs.",
                why=f"{edit.site}.{edit.layer} is read by {', '.join(one.id for one in reading)}.",
                todo=f"Name one of them with --sae. {STAYED}",
            )
        sae = reading[0] if reading else None
        if sae is None:
            there = ", ".join(f"{one.site}.{one.layer}" for one in self.saes)
            raise EditError(
                f"{edit.feature} cannot be edited: there is no SAE for {edit.site}.{edit.layer}.",
                why=f"SAEs are loaded for: {there}." if there else "No SAE is loaded.",
                todo=f"Name one with --sae, or edit a layer that has one. {STAYED}",
            )
        if edit.index >= sae.width:
            raise EditError(
                f"There is no feature {edit.feature}.",
                why=f"The SAE of {edit.site}.{edit.layer} has features 0 to {sae.width - 1}.",
                todo=STAYED,
            )
        return sae

    def columns_of(self, edit: KnockEdit | HeadEdit) -> slice:
        """Return the columns of an edit's tensor that it replaces: all, or those of one head."""
        if isinstance(edit, KnockEdit):
            return slice(None)
        size = head_size(self.model)
        return slice(edit.head * size, (edit.head + 1) * size)

    def knocked(
        self, edit: KnockEdit | HeadEdit, site: HookSite, layer: int, positions: tuple[int, ...]
    ) -> SetStep | RandomStep:
        """Return the step that knocks out one layer (METHODS 1.5)."""
        columns = self.columns_of(edit)
        width = self._width(site)
        rows = [self._replacement(edit.kind, site, layer, p, width)[columns] for p in positions]
        values = torch.stack(rows)
        if edit.kind == "random":
            unit = values / values.norm(dim=-1, keepdim=True)
            return RandomStep(positions, unit, columns)
        return SetStep(positions, values, columns)

    def _width(self, site: HookSite) -> int:
        if site != "z":
            return self.model.d_model
        return head_size(self.model) * head_count(self.model)

    def _replacement(
        self, kind: KnockKind, site: HookSite, layer: int, position: int, width: int
    ) -> Tensor:
        """Return what stands at a position instead: [width]; for `random` a normal draw."""
        if kind == "zero":
            return torch.zeros(width, device=self.model.device_at(layer))
        draw = _drawn(f"{self.seed}:{site}:{layer}:{position}")
        if kind == "random":
            return torch.randn(width, generator=draw).to(self.model.device_at(layer))
        statistics, where = self.statistics_of(site), self._kind_at(position)
        if kind == "mean":
            return statistics.mean(site, layer, where)
        number = int(torch.randint(2**31, (1,), generator=draw))
        return statistics.sample(site, layer, where, number).float()

    def _kind_at(self, position: int) -> Kind:
        """Return which positions of the corpus are like this one; EditError where none are."""
        if position == self.text.readout:
            return "readout"
        if self.text.tokens[position].part == "text":
            return "text"
        raise EditError(
            f"Position {position} has no mean on the corpus.",
            why="It is a token of the template or a special one; the corpus is read at tokens of "
            "the text and at the readout.",
            todo=f"Use zero or random, or another position. {STAYED}",
        )

    def promoted(self, edit: PromoteEdit, layer: int) -> Tensor:
        """Return the unit direction [d_model] an emotion is promoted along, float64 on the CPU.

        EditError as `emotion_row`, and where the corpus has no texts of the emotion.
        """
        probe = self._probe_of(edit.emotion)
        if edit.along == "row":
            return self.emotion_row(edit.emotion, layer)
        return self.emotion_means.unit(edit.emotion, probe.emotions, layer)

    def _probe_of(self, emotion: str) -> Probe:
        """Return the readout probe; EditError without one, and where it has no such emotion."""
        if self.probe is None:
            raise EditError(
                f"{emotion} has no direction: no readout probe is in force.",
                why="A fitted probe says which emotions there are, and projecting out goes along "
                "its row.",
                todo=f"Fit probes with `emotui probe fit`, or --fit. {STAYED}",
            )
        if emotion not in self.probe.emotions:
            raise EditError(
                f"The probe knows no emotion called {clean(emotion)!r}.",
                why=f"It reads: {', '.join(self.probe.emotions)}.",
                todo=STAYED,
            )
        return self.probe

    def emotion_row(self, emotion: str, layer: int) -> Tensor:
        """Return the unit row [d_model] of the readout probe, float64 on the CPU.

        EditError without a probe, and for an emotion it does not know.
        """
        probe = self._probe_of(emotion)
        place = probe.places.index(("resid", layer))
        # In float64, so that the direction is as exact as the run; not every device has it.
        row = probe.weight[place][:, probe.emotions.index(emotion)].cpu().double()
        norm = float(row.norm())
        if not norm > 0:
            raise EditError(
                f"The probe's row of {emotion} at layer {layer} is zero.",
                why="Nothing was fitted there, so it has no direction.",
                todo=STAYED,
            )
        return row / norm

    def strength(self, edit: PromoteEdit | ModulateEdit, layer: int) -> float:
        """Return the norm of what an edit adds at a layer, with its sign."""
        return edit.value * self.statistics.mean_norm("resid", layer)

    def patched(self, edit: PatchEdit, layer: int) -> Tensor:
        """Return what the source has at the edit's site and layer: [1, d_model]."""
        if edit.source not in self._others:
            self._others[edit.source] = self._other(edit.source)
        run, text = self._others[edit.source]
        at_readout = positions_in(edit.positions, self.text) == (self.text.readout,)
        position = text.readout if at_readout else text.last
        row = run.positions(edit.site).index(position)
        return run.at(edit.site, layer)[row : row + 1]


def head_count(model: LoadedModel) -> int:
    """Return the number of attention heads of a layer."""
    return int(model.hf.config.get_text_config().num_attention_heads)


def head_size(model: LoadedModel) -> int:
    """Return the columns of `z` that one head writes."""
    config = model.hf.config.get_text_config()
    size = getattr(config, "head_dim", None)
    return int(size) if size else int(config.hidden_size) // head_count(model)


def _drawn(what: str) -> torch.Generator:
    """Return a generator on the CPU that always draws the same for the same words."""
    seed = int.from_bytes(hashlib.sha256(what.encode()).digest()[:8], "little") % 2**63
    return torch.Generator(device="cpu").manual_seed(seed)
