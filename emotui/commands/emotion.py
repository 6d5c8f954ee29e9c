"""`emotui emotion`: define an emotion of one's own, list those there are, remove one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from emotui.cache.demo import is_demo
from emotui.commands.common import cache_for, say, wait_for
from emotui.commands.options import ModelOptions, PromptOptions, in_groups
from emotui.core.errors import UsageError
from emotui.core.protocol import Defined, DefineRequest
from emotui.core.text import clean, template_named

if TYPE_CHECKING:
    from emotui.cache.probes import ProbeCard

app = typer.Typer(
    help="Emotions of one's own, from a word or a few texts: define, list and remove them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

CacheDir = Annotated[
    Path | None,
    typer.Option("--cache-dir", help="Where they are kept.", envvar="EMOTUI_CACHE_DIR"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


class DefinedEmotion(msgspec.Struct, frozen=True):
    """One defined emotion of one model, as `emotion list` prints it."""

    name: str
    model: str
    template: str
    data: str
    judged_on: str
    created: str
    probe_ids: tuple[str, ...]
    layer: int
    """The residual layer where leaving texts out tells best, at the readout."""
    accuracy: float | None
    """None where it was not measured: of an imported direction."""
    trust: str


@app.command()
@in_groups
def define(
    name: Annotated[str, typer.Argument(help="What its row is called.")],
    model: ModelOptions,
    prompt: PromptOptions,
    from_file: Annotated[
        Path | None, typer.Option("--from", help="A file with a text on each line, at least five.")
    ] = None,
    word: Annotated[str | None, typer.Option("--word", help="A word instead of texts.")] = None,
    texts: Annotated[
        list[str] | None, typer.Option("--text", help="One text; give it at least five times.")
    ] = None,
    other: Annotated[
        Path | None,
        typer.Option("--other", help="Texts of another source that show it, to judge it on."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """Define an emotion; it is a row of every trace of this model and template from then on."""
    from emotui.cache.store import Store
    from emotui.core.client import EngineClient

    template_named(prompt.template)
    given = (*(lines_of(from_file) if from_file is not None else ()), *(texts or ()))
    if given and word is not None:
        raise UsageError(
            "An emotion is defined from a word or from texts, not from both.",
            todo="Leave --word or the texts out.",
        )
    spec = model.spec()
    with cache_for(cache_dir, private=False, demo=is_demo(spec)) as root:
        request = DefineRequest(
            spec=spec,
            cache_dir=str(root),
            name=name,
            texts=given,
            other=lines_of(other) if other is not None else (),
            word=word,
            template=prompt.template,
            label_set=prompt.labels,
            seed=seed,
        )
        with EngineClient(root, offline=spec.offline) as client:
            done = wait_for(client.submit(request))
        assert isinstance(done, Defined)
        with Store.open(root) as store:
            cards = [card for card in store.probes() if card.id in done.probe_ids]
    if as_json:
        _print_json(done)
    else:
        typer.echo("\n".join([*page_of(done), *elsewhere_of(cards)]))
    say(f"Layer by layer: emotui probe show {done.probe_ids[0]}")


def lines_of(path: Path) -> tuple[str, ...]:
    """Return the texts of a file, one on each line. UsageError where it cannot be read."""
    try:
        content = path.expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{clean(str(path))} could not be read.",
            why=getattr(error, "strerror", None) or "It is no UTF-8 text.",
            todo="Give a text file with one text on each line.",
        ) from error
    return tuple(line.strip() for line in content.splitlines() if line.strip())


def page_of(done: Defined) -> list[str]:
    """Return what is said of a new emotion, line by line; also on the screen."""
    lines = [f"{done.name}: {clean(done.data)}", f"judged on {done.judged_on}"]
    for kind, (layer, accuracy, trust) in zip(("readout", "token"), done.best, strict=True):
        place = "emb" if layer < 0 else f"layer {layer}"
        lines.append(
            f"{kind}: texts left out in turn are told at {accuracy:.2f} balanced accuracy, best at "
            f"{place}: {trust}"
        )
    if all(trust != "trusted" for _, _, trust in done.best):
        lines.append("Not trusted at either: the row says little beyond the words of the texts.")
    return lines


def elsewhere_of(cards: Sequence[ProbeCard]) -> list[str]:
    """Return how probes do on the texts of another source, which trust goes by; [] without any."""
    lines = []
    for card in cards:
        resid = [score for score in card.scores if score.site == "resid"]
        told = {score.layer: score.other_accuracy for score in resid}
        chosen = max(resid, key=lambda score: (score.dev_accuracy or 0.0, -score.layer))
        known = {layer: value for layer, value in told.items() if value is not None}
        if chosen.layer not in known:
            continue
        best = max(known, key=lambda layer: (known[layer], -layer))
        lines.append(
            f"{card.kind}: on the texts of the other source {known[chosen.layer]:.2f} at "
            f"{_place(chosen.layer)}, best {known[best]:.2f} at {_place(best)}: trust goes by these"
        )
    return lines


def _place(layer: int) -> str:
    return "emb" if layer < 0 else f"layer {layer}"


@app.command("list")
def list_emotions(as_json: AsJson = False, cache_dir: CacheDir = None) -> None:
    """List the emotions that were defined, newest first."""
    found = defined_emotions(cache_dir)
    if as_json:
        _print_json(found)
        return
    if not found:
        say("No emotion is defined yet. `emotui emotion define NAME --from FILE` defines one.")
    in_force = _in_force(cache_dir)
    for one in found:
        found_at = "not measured"
        if one.accuracy is not None:
            found_at = f"{one.accuracy:.2f} at {_place(one.layer)}"
        probes = [f"{name} (in force)" if name in in_force else name for name in one.probe_ids]
        typer.echo(
            f"{one.name} · {clean(one.model)} · {one.template} · {clean(one.data)}\n"
            f"  readout: {found_at}, {one.trust}; {', '.join(probes)}"
        )


def _in_force(cache_dir: Path | None) -> frozenset[str]:
    from emotui.cache.prepare import ids_in_force
    from emotui.cache.store import Store

    with cache_for(cache_dir, private=False) as root, Store.open(root) as store:
        return ids_in_force(store)


def defined_emotions(cache_dir: Path | None) -> list[DefinedEmotion]:
    """Return the defined emotions of all models, newest first."""
    from emotui.cache.probes import DEFINED
    from emotui.cache.store import Store

    with cache_for(cache_dir, private=False) as root, Store.open(root) as store:
        cards = [card for card in store.probes() if card.label_set.startswith(DEFINED)]
    groups: dict[tuple[str, ...], list[ProbeCard]] = {}
    for card in cards:
        groups.setdefault((card.emotions[0], card.fingerprint, card.template), []).append(card)
    found = []
    for members in groups.values():
        readout = next((card for card in members if card.kind == "readout"), members[0])
        resid = [score for score in readout.scores if score.site == "resid"]
        best = max(resid, key=lambda score: (score.dev_accuracy or 0.0, -score.layer))
        found.append(
            DefinedEmotion(
                name=readout.emotions[0],
                model=readout.model,
                template=readout.template,
                data=readout.data,
                judged_on=readout.judged_on,
                created=readout.created,
                probe_ids=tuple(card.id for card in members),
                layer=best.layer,
                accuracy=(best.dev_accuracy or 0.0) if readout.judged else None,
                trust=best.trust,
            )
        )
    return found


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="Its name, as in `emotion list`.")],
    cache_dir: CacheDir = None,
) -> None:
    """Remove a defined emotion, of every model and template."""
    from emotui.cache import files
    from emotui.cache.probes import DEFINED, remove_probe
    from emotui.cache.store import Store

    wanted = f"{DEFINED}{name.strip().lower()}"
    with cache_for(cache_dir, private=False) as root, Store.open(root) as store:
        cards = [card for card in store.probes() if card.label_set == wanted]
        if not cards:
            raise UsageError(
                f"No emotion called {clean(name)!r} was defined.",
                todo="`emotui emotion list` shows those that were.",
            )
        try:
            for card in cards:
                remove_probe(root, card.fingerprint, card.id)
        except OSError as error:
            files.write_failed(root, error)
    say(f"Removed {clean(name)}: {len(cards)} probes.")


def _print_json(value: Any) -> None:
    document = msgspec.json.format(msgspec.json.encode(value, order="deterministic"), indent=1)
    sys.stdout.buffer.write(document + b"\n")
    sys.stdout.buffer.flush()
