"""Promote each emotion and knock out each output of a model, beside controls of the same norm.

    python benchmarks/promotion.py [--model FOLDER --probe ID --cache FOLDER] [--texts 21]

Without --model: the bundled demo with its probes. Emotions are promoted along the difference of
means and along the probe's row (--along). Every edit is one of the edit language, at the
readout, on texts of the corpus topics that nothing was fitted on. Two kinds of control, of the
norm of the edit's own delta: directions shaped like the data (the covariance of the corpus at that
place, as the program draws them), and directions of any way. What counts is the mean over texts of
the change of a probability among the seven answers; a control keeps its direction over all texts.
The layer of each emotion is the one where, on as many texts of the dev topics, the rise exceeds
the largest control by most.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from emotui.cache.demo import DEMO_MODEL, install_demo
from emotui.cache.store import Store
from emotui.core.corpus import Situation, Split, load_situations
from emotui.core.edits import ALONG, PromoteEdit, Source, parse_edit
from emotui.core.emotions import LABEL_SETS
from emotui.core.engine.answer import label_tokens
from emotui.core.engine.capture import Activations, Hook, QuietJob
from emotui.core.engine.capture import capture as run_plain
from emotui.core.engine.instruments import Instruments
from emotui.core.engine.intervene import EditGroup, group_edits, place_edits
from emotui.core.engine.materials import Materials, Other
from emotui.core.engine.model import LoadedModel, load_model
from emotui.core.engine.probes import Probe
from emotui.core.engine.rerun import rerun
from emotui.core.engine.sites import HookSite
from emotui.core.engine.statistics import Statistics
from emotui.core.protocol import ModelSpec
from emotui.core.text import template_named

LABEL_SET = "ekman7"
EMOTIONS = LABEL_SETS[LABEL_SET]
KNOCKED = ("zero", "mean")


@dataclass(frozen=True)
class Prompt:
    """One text, run once, and what edits of it are made of."""

    run: Activations
    materials: Materials
    before: Tensor
    """Probabilities of the labels, [labels]."""


class Bench:
    """A model with a readout probe, its corpus statistics, and the answers' tokens."""

    def __init__(self, model: LoadedModel, store: Store, probe: Probe, controls: int, seed: int):
        self.model, self.store, self.probe, self.controls = model, store, probe, controls
        self.seed = seed
        self.statistics: Statistics | None = None
        self.template = template_named("ask")
        labels = label_tokens(model.reader, LABEL_SET, self.template)
        if labels.rule != "first_token":
            sys.exit("the labels are not told apart by one token of this model")
        self.deciding = list(labels.deciding)

    def prompts(self, split: Split, count: int) -> list[Prompt]:
        return [self._prompt(one.text) for one in chosen(split, count)]

    def _prompt(self, text: str) -> Prompt:
        def none(_source: Source) -> Other:
            raise AssertionError("nothing is patched here")

        record = self.model.reader.read(text, self.template)
        materials = Materials(
            self.model,
            self.store,
            text=record,
            template=self.template,
            saes=(),
            probes=(self.probe,),
            other=none,
            seed=0,
            job=QuietJob(),
        )
        if self.statistics is None:
            self.statistics = materials.statistics
        materials.statistics = self.statistics
        run = run_plain(self.model, [token.id for token in record.tokens])
        return Prompt(run, materials, self.answers(run.logits[None])[0])

    def answers(self, logits: Tensor) -> Tensor:
        return logits[:, self.deciding].float().softmax(dim=-1)

    def directions(self, prompt: Prompt, site: HookSite, layer: int) -> Tensor:
        """Return the unit directions of the controls of both kinds, [2 * controls, width]."""
        shaped = prompt.materials.statistics_of(site).directions(
            site, layer, "readout", count=self.controls, seed=self.seed
        )
        generator = torch.Generator().manual_seed(self.seed)
        any_way = torch.randn(shaped.shape, generator=generator)
        return torch.cat([shaped, any_way / any_way.norm(dim=-1, keepdim=True)])

    def changes(self, prompt: Prompt, lines: Sequence[str], *, one_norm: bool) -> Tensor:
        """Return how edits of one site and layer, and the controls of each, change the answer.

        [edits, 1 + 2 * controls, labels]: the edit, controls shaped like the data, of any way.
        With `one_norm` all edits add vectors of the same norm, so their controls are the same.
        """
        placed = place_edits([parse_edit(line) for line in lines], prompt.materials.text)
        groups: list[EditGroup] = []
        for one in placed:
            (group,) = group_edits([one], prompt.materials)
            groups.append(group)
        (place,) = {group.place for group in groups}
        site, layer = place
        readout = prompt.materials.text.readout
        drawn = self.directions(prompt, site, layer)

        def hooks(rows: range) -> list[Hook]:
            def function(tensor: Tensor) -> Tensor:
                here = tensor[0]  # every row is the same before the edit: [1, width]
                own = torch.cat([group.delta(here, [readout]) for group in groups])
                norms = own.norm(dim=-1)
                if one_norm:
                    assert torch.allclose(norms, norms[0], rtol=1e-4)
                    norms = norms[:1]
                controls = [(norm * drawn).to(own.dtype) for norm in norms]
                return tensor + torch.cat([own, *controls])[rows.start : rows.stop, None]

            return [Hook(site, layer, function)]

        rows = rerun(
            self.model,
            prompt.run.resid[layer],
            start=layer,
            n_rows=len(lines) + (1 if one_norm else len(lines)) * 2 * self.controls,
            hooks=hooks,
            first=readout,
        )
        after = self.answers(rows.logits) - prompt.before
        controls = after[len(lines) :].view(-1, 2 * self.controls, len(self.deciding))
        controls = controls.expand(len(lines), -1, -1)
        return torch.cat([after[: len(lines), None], controls], dim=1)


def chosen(split: Split, count: int) -> list[Situation]:
    """Return texts of a split, equally many of each emotion, both halves of the pairs."""
    found: list[Situation] = []
    for emotion in EMOTIONS:
        those = [one for one in load_situations() if (one.split, one.emotion) == (split, emotion)]
        share = count // len(EMOTIONS)
        found += [those[int(number * len(those) / share)] for number in range(share)]
    return found


def promotions(bench: Bench, prompts: Sequence[Prompt], strength: float, along: str) -> Tensor:
    """Return the mean rise of each emotion's own probability: [layers, emotions, edit, controls].

    The last axis as in `Bench.changes`.
    """
    layers = []
    for layer in range(bench.model.n_layers):
        lines = [
            f"promote {emotion} L{layer} {strength:+g} along {along} at readout"
            for emotion in EMOTIONS
        ]
        found = [bench.changes(prompt, lines, one_norm=True) for prompt in prompts]
        each = torch.stack(found).mean(dim=0)
        layers.append(torch.stack([each[n, :, n] for n in range(len(EMOTIONS))]))
    return torch.stack(layers)


def along_emotion(
    bench: Bench, prompt: Prompt, layer: int, emotion: str, along: str, rises: Tensor
) -> dict[str, float]:
    """Return how far data-shaped controls of these rises lie along the emotion's direction."""
    edit = parse_edit(f"promote {emotion} L{layer} +1 along {along}")
    assert isinstance(edit, PromoteEdit)
    unit = prompt.materials.promoted(edit, layer).float()
    cosines = bench.directions(prompt, "resid", layer)[: bench.controls] @ unit
    return {
        "cosine": float(cosines[rises.argmax()]),
        "correlation": float(torch.corrcoef(torch.stack([cosines, rises]))[0, 1]),
    }


def knockouts(bench: Bench, prompts: Sequence[Prompt]) -> list[dict[str, object]]:
    """Return what knocking out each attention and MLP output does to the answers given."""
    found: list[dict[str, object]] = []
    for site in ("attn", "mlp"):
        for layer in range(bench.model.n_layers):
            lines = [f"knock {site} L{layer} {kind} at readout" for kind in KNOCKED]
            found_here = [bench.changes(prompt, lines, one_norm=False) for prompt in prompts]
            each = torch.stack(found_here)
            before = torch.stack([prompt.before for prompt in prompts])
            top = before.argmax(dim=-1)
            each = each[:, :, : 1 + bench.controls]
            own = each[torch.arange(len(prompts)), :, :, top]
            flipped = (before[:, None, None] + each).argmax(dim=-1) != top[:, None, None]
            for number, kind in enumerate(KNOCKED):
                falls = -own[:, number].mean(dim=0)
                turned = flipped[:, number].float().mean(dim=0)
                found.append(
                    {
                        "site": site,
                        "layer": layer,
                        "kind": kind,
                        "fall": float(falls[0]),
                        "control": float(falls[1:].max()),
                        "turned": float(turned[0]),
                        "control_turned": float(turned[1:].max()),
                    }
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--probe", help="id of a readout probe of that model, in the cache")
    parser.add_argument("--cache", type=Path, help="default: a folder of its own")
    parser.add_argument("--texts", type=int, default=21, help="a multiple of seven")
    parser.add_argument("--controls", type=int, default=128, help="of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the controls")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.1, 0.5, 1.5])
    parser.add_argument("--along", nargs="+", default=list(ALONG), choices=ALONG)
    parser.add_argument("--no-knock", action="store_true", help="promotions alone")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        folder = options.cache or Path(root)
        if options.model is None:
            install_demo(folder)
        model = load_model(ModelSpec(options.model or str(DEMO_MODEL), offline=True), QuietJob())
        with Store.open(folder) as store, torch.no_grad():
            cards = [card for card in store.probes(model.fingerprint) if card.kind == "readout"]
            names = [options.probe] if options.probe else [card.id for card in cards[:1]]
            if not names:
                sys.exit("there is no readout probe of this model: emotui probe fit")
            (probe,) = Instruments(model, store).probes(names)
            bench = Bench(model, store, probe, options.controls, options.seed)
            sys.exit(report(bench, options))


def report(bench: Bench, options: argparse.Namespace) -> int:
    dev, test = (bench.prompts(split, options.texts) for split in ("dev", "test"))
    print(f"{bench.model.n_layers} layers, probe {bench.probe.id}; {len(test)} texts of the test")
    print(
        f"topics, layers chosen on {len(dev)} of the dev topics; {bench.controls} controls a kind"
    )
    met = False
    rows: list[dict[str, object]] = []
    for along, strength in itertools.product(options.along, options.strengths):
        choosing, measured = (
            promotions(bench, prompts, strength, along) for prompts in (dev, test)
        )
        lead = choosing[:, :, 0] - choosing[:, :, 1:].amax(dim=-1)
        print(f"\npromote EMOTION LAYER {strength:+g} along {along} at readout")
        print(f"{'':<27}data-shaped: largest, as large; any way: largest")
        print(f"{'':<27}cosine of that one with the direction; correlation of cosine and rise")
        print("emotion    layer    rise" + " " * 64 + "beats all")
        beaten = []
        for number, layer in enumerate(lead.argmax(dim=0).tolist()):
            rise = measured[layer, number, 0]
            shaped, any_way = measured[layer, number, 1:].view(2, bench.controls)
            beaten.append(bool(rise > shaped.max()) and bool(rise > any_way.max()))
            row = {
                "along": along,
                "strength": strength,
                "emotion": EMOTIONS[number],
                "layer": layer,
                "rise": float(rise),
                "shaped": float(shaped.max()),
                "as_large": int((shaped >= rise).sum()),
                "any_way": float(any_way.max()),
                **along_emotion(bench, test[0], layer, EMOTIONS[number], along, shaped),
            }
            rows.append(row)
            said = "yes" if beaten[-1] else "no"
            print(
                f"{row['emotion']:<9} {layer:>6} {rise:>+7.3f} {row['shaped']:>+15.3f} "
                f"{row['as_large']:>10} {row['any_way']:>+12.3f} "
                f"{row['cosine']:>+9.2f} {row['correlation']:>+9.2f}   {said}"
            )
        met = met or all(beaten)
        print(f"{sum(beaten)} of {len(EMOTIONS)} beat every control at their layer")
    figures: dict[str, object] = {"promotions": rows}
    figures["knockouts"] = knocked = [] if options.no_knock else knockouts(bench, test)
    if knocked:
        print("\nknock SITE LAYER KIND at readout: fall of the probability of the answer given")
        print("before, and share of texts that answer otherwise; in brackets the largest control")
        print(f"layer  {'':<4} " + "".join(f"{kind:^36}" for kind in KNOCKED))
    for first in range(0, len(knocked), len(KNOCKED)):
        pair = knocked[first : first + len(KNOCKED)]
        print(
            f"{pair[0]['layer']:>5}  {pair[0]['site']:<4} "
            + "".join(
                f"{row['fall']:>+9.3f} ({row['control']:+.3f}) {row['turned']:>6.2f} "
                f"({row['control_turned']:.2f})  "
                for row in pair
            )
        )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"bar, all seven at one of the strengths: {'met' if met else 'missed'}")
    return int(not met)


if __name__ == "__main__":
    main()
