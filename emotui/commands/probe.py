"""`emotui probe`: fit the probes of a model, list them, and show how far each can be trusted."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from emotui.commands.common import cache_for, say, wait_for
from emotui.commands.options import ModelOptions, PromptOptions, in_groups
from emotui.core.protocol import FitRequest, Fitted, Loaded, LoadRequest
from emotui.core.text import clean, template_named

if TYPE_CHECKING:
    from rich.table import Table

    from emotui.cache.probes import ProbeCard, ProbeScore

app = typer.Typer(
    help="Fit the probes of a model (fit), list, show and remove them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

CacheDir = Annotated[
    Path | None,
    typer.Option("--cache-dir", help="Where probes are kept.", envvar="EMOTUI_CACHE_DIR"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
NOT_MEASURED = "not measured"
_WIDEST = 1000  # columns of a table that no terminal bounds: as many as it takes
_BYTES = {"float32": 4, "bfloat16": 2}


@app.command()
@in_groups
def fit(
    model: ModelOptions,
    prompt: PromptOptions,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="Labelled texts: TSV, CSV, JSONL, or a dataset's OWNER/NAME[:SPLIT]."
        ),
    ] = None,
    other: Annotated[
        Path | None,
        typer.Option("--other", help="Labelled texts of another source, to judge the probes on."),
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="The column of texts.")] = None,
    label_column: Annotated[str | None, typer.Option(help="The column of labels.")] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Ridge regression: quick, less accurate, marked.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """Fit a readout and a token probe on every layer and site of a model, and the appraisals."""
    from emotui.cache.prepare import ids_in_force
    from emotui.cache.store import Store
    from emotui.core.client import EngineClient
    from emotui.core.engine.labelled import labelled_texts

    template_named(prompt.template)
    spec = model.spec()
    if model.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    # Read here too: a file that cannot be used is said before a model is loaded.
    texts = labelled_texts(
        label_set=prompt.labels,
        data=_absolute(data),
        other=_absolute(other),
        text_column=text_column,
        label_column=label_column,
        seed=seed,
    )
    judging = sum(text.split == "other" for text in texts.texts)
    say(f"Fitting on {len(texts.texts) - judging:,} texts: {texts.name}.")
    if texts.other:
        also = "" if texts.another_source else ", of the same source by its name: never trusted"
        say(f"Judging on {judging:,} texts: {texts.other}{also}.")
    with cache_for(cache_dir, private=False) as root:
        request = FitRequest(
            spec=spec,
            cache_dir=str(root),
            template=prompt.template,
            label_set=prompt.labels,
            data=_absolute(data),
            other=_absolute(other),
            text_column=text_column,
            label_column=label_column,
            preview=preview,
            seed=seed,
        )
        with EngineClient(root, offline=spec.offline) as client:
            loaded = wait_for(client.submit(LoadRequest(request.spec, request.cache_dir)))
            assert isinstance(loaded, Loaded)
            say(_estimate(loaded, len(texts.texts), len(texts.emotions)))
            done = wait_for(client.submit(request))
        assert isinstance(done, Fitted)
        with Store.open(root) as store:
            cards = [card for card in store.probes(loaded.fingerprint) if card.id in done.probe_ids]
            in_force = ids_in_force(store)
    cards.sort(key=lambda card: done.probe_ids.index(card.id))
    _print_cards(cards, in_force, as_json=as_json)
    if not in_force.issuperset(done.probe_ids):
        say(
            "These are not in force: a full fit goes before a preview, and more emotions before "
            f"fewer. `--probe {done.probe_ids[0]}` reads with them."
        )
    say(f"Done in {done.seconds:.0f} s. Layer by layer: emotui probe show {done.probe_ids[0]}")


def _absolute(path: Path | None) -> str | None:
    """The engine may run elsewhere; a dataset's id stays as it is."""
    from emotui.core.engine.hub_data import is_dataset_id

    if path is None or is_dataset_id(str(path)):
        return None if path is None else str(path)
    return str(path.expanduser().absolute())


def _estimate(loaded: Loaded, texts: int, emotions: int) -> str:
    places = 3 * loaded.layers + 1
    memory = 2 * places * texts * loaded.d_model * _BYTES.get(loaded.dtype, 4)
    disk = 2 * places * loaded.d_model * (emotions + 1) * 4
    return (
        f"{texts:,} prompts through {loaded.layers} layers on {loaded.device}; about "
        f"{memory / 1e6:,.0f} MB of memory beside the model's, {disk / 1e6:,.1f} MB on disk. "
        "Ctrl+c cancels; nothing is kept then."
    )


@app.command("list")
def list_probes(as_json: AsJson = False, cache_dir: CacheDir = None) -> None:
    """List the fitted probes, newest first."""
    from emotui.cache.prepare import ids_in_force
    from emotui.cache.store import Store

    with cache_for(cache_dir, private=False) as root, Store.open(root) as store:
        cards, in_force = store.probes(), ids_in_force(store)
    _print_cards(cards, in_force, as_json=as_json)
    if not as_json:
        say(f"{len(cards)} {'probe' if len(cards) == 1 else 'probes'}")


@app.command()
def remove(
    probes: Annotated[list[str], typer.Argument(help="Ids of probes, or their beginnings.")],
    cache_dir: CacheDir = None,
) -> None:
    """Remove probes; traces that were read with them stay."""
    from emotui.cache import files
    from emotui.cache.demo import is_bundled
    from emotui.cache.probes import card_named, remove_probe
    from emotui.cache.store import Store

    with cache_for(cache_dir, private=False) as root, Store.open(root) as store:
        known = store.probes()
        # All are found before one is removed.
        cards = {card.id: card for card in (card_named(known, name) for name in probes)}
        for card in cards.values():
            try:
                remove_probe(root, card.fingerprint, card.id)
            except OSError as error:
                files.write_failed(root, error)
            again = "; it comes with emotui, and with the demo again" if is_bundled(card.id) else ""
            say(f"Removed {card.id}{again}.")


@app.command()
def show(
    probe: Annotated[str, typer.Argument(help="A probe's id or its beginning.")],
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """Show what a probe was fitted on, and its scores and trust at every layer and site."""
    from emotui.cache.probes import card_named

    card = card_named(cards_in(cache_dir), probe)
    if as_json:
        print_json(card)
        return
    facts = {
        "probe": card.id,
        "kind": card.kind,
        "labels": f"{card.label_set}: {', '.join(card.emotions)}",
        "template": card.template,
        "model": card.model,
        "fitted on": f"{card.data} ({card.n_texts:,} texts), {card.created}",
        "judged on": card.judged_on,
    }
    for name, value in facts.items():
        typer.echo(f"{name:<10} {clean(value)}")
    if not card.judged:
        # Its scores hold places and no measurement.
        say("Nothing was measured of these directions: there are no scores to show.")
        return
    first = card.scores[0]
    typer.echo(
        f"{'to beat':<10} bag of embeddings {first.bag_accuracy:.2f}; shuffled labels "
        + ", ".join(
            f"{score.shuffled_95:.2f} ({score.site})"
            for score in {score.site: score for score in card.scores}.values()
        )
    )
    _print_table(_score_table(card))
    typer.echo(f"{'controls':<10} {_controls_of(card)}")
    if _has_controls(card):
        _print_table(_control_table(card))
    if card.appraisals:
        typer.echo(
            f"{'appraisals':<10} of the situations (author-assigned), residual at the readout: R² "
            "on held-out topics at the layer that was best on dev; `modulate` goes along them"
        )
        _print_table(_appraisal_table(card))
    say(
        "Balanced accuracy. trusted: above shuffled labels (95 %, best layer) and above the bag of "
        "embeddings by more than the best layer of a site does by luck (95 %), on texts of another "
        "source, or of held-out topics of the situations; lexical: above shuffled labels alone. "
        "selectivity: on the texts of the control task, the probe minus the control; random: from "
        "as many random directions; orthogonal: from those orthogonal to the probe's."
    )


def _has_controls(card: ProbeCard) -> bool:
    return any(score.random_accuracy is not None for score in card.scores)


def _controls_of(card: ProbeCard) -> str:
    """Say what the further controls are, and which were not measured."""
    if not _has_controls(card):
        return "control task and random directions: not measured; `emotui probe fit` does"
    random = (
        f"{len(card.emotions)} random directions, free and orthogonal to the probe's (5 drawings)"
    )
    if card.control_words is None:
        return f"control task: not measured, first words recur too little; {random}"
    return (
        f"control task: labels drawn for {card.control_words:,} first words, judged on "
        f"{card.control_texts:,} held-out texts; {random}"
    )


def cards_in(cache_dir: Path | None) -> list[ProbeCard]:
    """Return the cards of all probes, newest first."""
    from emotui.cache.store import Store

    with cache_for(cache_dir, private=False) as root, Store.open(root) as store:
        return store.probes()


def print_json(value: Any) -> None:
    """Print one JSON document."""
    document = msgspec.json.format(msgspec.json.encode(value, order="deterministic"), indent=1)
    sys.stdout.buffer.write(document + b"\n")
    sys.stdout.buffer.flush()


def _print_cards(cards: list[ProbeCard], in_force: AbstractSet[str], *, as_json: bool) -> None:
    if as_json:
        print_json(cards)
        return
    for card in cards:
        reads = "  in force" if card.id in in_force else ""
        name = clean(card.model.rstrip("/").rsplit("/", 1)[-1])
        typer.echo(
            f"{card.id}{reads}\n  {name}, {card.kind}: {_best_of(card)}{_appraisals_of(card)}"
        )
        typer.echo(f"  fitted on {clean(card.data)}, {card.n_texts:,} texts")
        if card.judged_on:
            typer.echo(f"  judged on {clean(card.judged_on)}")


def _best_of(card: ProbeCard) -> str:
    """Return place and trust, accuracy, and that of the bag of embeddings, of the best layer."""
    if not card.judged:
        return NOT_MEASURED
    best = _best(card)
    if best is None:
        return "no scores"
    return (
        f"layer {_layer_name(best.layer)} {best.trust}, {best.balanced_accuracy:.2f} held out, "
        f"{best.bag_accuracy:.2f} bag"
    )


def _best(card: ProbeCard) -> ProbeScore | None:
    """Return the residual layer that was best on dev, so that held-out texts choose nothing."""
    resid = [score for score in card.scores if score.site == "resid"]
    return max(resid, key=lambda s: (s.dev_accuracy or 0.0, -s.layer), default=None)


def _layer_name(layer: int) -> str:
    return "emb" if layer < 0 else str(layer)


def _score_table(card: ProbeCard) -> Table:
    table = _table("site", "layer:", "trust", "judged:", "dev:", "named:", "unnamed:", "other:")
    for score in card.scores:
        apart = (
            score.dev_accuracy,
            score.named_accuracy,
            score.unnamed_accuracy,
            score.other_accuracy,
        )
        table.add_row(
            score.site,
            _layer_name(score.layer),
            score.trust,
            f"{score.balanced_accuracy:.2f}",
            *("" if value is None else f"{value:.2f}" for value in apart),
        )
    return table


def _control_table(card: ProbeCard) -> Table:
    table = _table(
        "site", "layer:", "judged:", "control:", "selectivity:", "random:", "orthogonal:"
    )
    for score in card.scores:
        found = (
            score.control_accuracy,
            score.selectivity,
            score.random_accuracy,
            score.orthogonal_accuracy,
        )
        table.add_row(
            score.site,
            _layer_name(score.layer),
            f"{score.balanced_accuracy:.2f}",
            *("" if value is None else f"{value:.2f}" for value in found),
        )
    return table


def _appraisal_table(card: ProbeCard) -> Table:
    table = _table("appraisal", "layer:", "R²:", "shuffled values, 95 %:", "bag of embeddings:")
    for best in card.best_appraisals():
        table.add_row(
            best.appraisal,
            _layer_name(best.layer),
            f"{best.r_squared:.2f}",
            f"{best.shuffled_95:.2f}",
            f"{best.bag_r_squared:.2f}",
        )
    return table


def _appraisals_of(card: ProbeCard) -> str:
    """Return the mean R² of the appraisals at their best layers, and the bag's; "" without them."""
    best = card.best_appraisals()
    if not best:
        return ""
    mean = sum(one.r_squared for one in best) / len(best)
    bag = sum(one.bag_r_squared for one in best) / len(best)
    return f"; appraisals R² {mean:.2f} (bag {bag:.2f})"


def _table(*columns: str) -> Table:
    """Return an empty table; a column whose name ends in a colon is one of numbers.

    Words fold into lines where the terminal is narrow: an id or a number is never cut short.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        numbers = name.endswith(":")
        table.add_column(
            name.removesuffix(":"),
            justify="right" if numbers else "left",
            overflow="fold",
            no_wrap=numbers,
        )
    return table


def _print_table(table: Table) -> None:
    from rich.console import Console

    narrow = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if narrow else _WIDEST
    # Names come from files and folders: never parsed as markup, never as emoji codes.
    Console(file=sys.stdout, width=width, markup=False, emoji=False, highlight=False).print(table)
