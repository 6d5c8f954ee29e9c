"""`emotui labels`: what SAE features single out, measured; explanations of them, imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from emotui.commands.common import cache_for, say, wait_for
from emotui.commands.options import ModelOptions, PromptOptions, SaeOptions, in_groups, request_of
from emotui.core.errors import SaeError, UsageError
from emotui.core.protocol import LabelsFitRequest, LabelsFitted
from emotui.core.text import clean, template_named

app = typer.Typer(
    help="Labels of SAE features: measure (fit), import, list, show and remove them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

CacheDir = Annotated[
    Path | None,
    typer.Option("--cache-dir", help="Where labels are kept.", envvar="EMOTUI_CACHE_DIR"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Sae = Annotated[
    list[str] | None, typer.Option("--sae", help="A folder, a params.npz, or RELEASE[:ID].")
]
Offline = Annotated[bool, typer.Option("--offline", help="Make no connection.")]


@app.command()
@in_groups
def fit(
    model: ModelOptions,
    saes: SaeOptions,
    prompt: PromptOptions,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Labelled texts (TSV, CSV, JSONL); else the bundled ones."),
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="The column of texts.")] = None,
    label_column: Annotated[str | None, typer.Option(help="The column of labels.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """Measure which emotion each feature singles out, at the readout, and keep it as its label."""
    from emotui.core.client import EngineClient

    template_named(prompt.template)
    asked = request_of(None, model, saes, prompt, cache_dir=cache_dir)
    if not asked.saes:
        raise UsageError(
            "No SAEs were named, and this model has no default.",
            todo="Name them: --sae FOLDER or RELEASE[:ID]; `emotui models QUERY` lists releases.",
        )
    with cache_for(cache_dir, private=False) as root:
        request = LabelsFitRequest(
            spec=asked.spec,
            cache_dir=str(root),
            saes=asked.saes,
            template=prompt.template,
            label_set=prompt.labels,
            data=None if data is None else str(data.expanduser().absolute()),
            text_column=text_column,
            label_column=label_column,
            seed=seed,
        )
        with EngineClient(root, offline=asked.spec.offline) as client:
            done = wait_for(client.submit(request))
    assert isinstance(done, LabelsFitted)
    if as_json:
        _print_json(done)
    else:
        for source in done.sources:
            sys.stdout.write(
                f"{clean(source.source)}: {source.features:,} features of {source.saes} SAEs, "
                f"{source.active:,} active at the readout of {done.texts:,} texts "
                f"({clean(done.data)})\n"
                + "".join(
                    f"  {emotion:<14} {count:>6,} confirmed, "
                    f"{source.specific.get(emotion, 0):>5,} specific\n"
                    for emotion, count in source.named.items()
                )
            )
        sys.stdout.flush()
    say(
        "Confirmed: family-wise p < 0.05 on one half of the texts, above chance on the other. "
        f"Other features have no emotion's name. Done in {done.seconds:.0f} s; traces show the "
        "labels from now on."
    )


@app.command("import")
def import_labels(
    batches: Annotated[
        list[Path] | None, typer.Argument(help="batch-N.jsonl.gz files of Neuronpedia's.")
    ] = None,
    sae: Annotated[
        str | None,
        typer.Option("--sae", help="The folder of SAEs they are of; else they go by their ids."),
    ] = None,
    from_neuronpedia: Annotated[
        list[str] | None,
        typer.Option(
            "--from-neuronpedia", help="Download those of an id: gemma-2-2b/20-gemmascope-res-16k."
        ),
    ] = None,
    offline: Offline = False,
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """Import explanations of features, once, into the cache."""
    from emotui.cache.fingerprints import sae_identity
    from emotui.cache.neuronpedia import fetched, import_files
    from emotui.cache.store import Store

    names, paths = tuple(from_neuronpedia or ()), list(batches or ())
    if not names and not paths:
        raise UsageError(
            "There is nothing to import.",
            todo="Give batch-N.jsonl.gz files, or --from-neuronpedia MODEL/SAE.",
        )
    if names and offline:
        raise UsageError(
            "Nothing was downloaded: --offline forbids it.",
            todo="Give batch-N.jsonl.gz files that are here.",
        )
    with cache_for(cache_dir, private=False) as root, Store.open(root) as store:
        identity = ""
        if sae is not None:
            if not Path(sae).expanduser().is_dir():
                raise SaeError(
                    f"There is no SAE folder {clean(sae)}.",
                    why="SAEs of a release go by their ids at Neuronpedia, without --sae.",
                ).of_input()
            identity = sae_identity(sae, store) or ""
        with fetched(names, progress=say) as downloaded:
            done = import_files(root, [*paths, *downloaded], identity=identity)
    if as_json:
        _print_json(done)
    else:
        for name, count in done.features.items():
            typer.echo(f"{clean(name)}: {count:,} features have an explanation")
    for why, count in done.skipped.items():
        say(f"{count:,} lines left out: {why}.")


@app.command("list")
def list_labels(as_json: AsJson = False, cache_dir: CacheDir = None) -> None:
    """List the files of labels in the cache."""
    from emotui.cache.labels import label_files
    from emotui.core.export.held import label_lines

    with cache_for(cache_dir, private=False) as root:
        found = label_files(root)
    if as_json:
        _print_json(found)
        return
    if not found:
        say("There are no labels yet. `emotui labels fit` measures those of a model's features.")
    for line in label_lines(found):
        typer.echo(line)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A file of `labels list`, or its start.")],
    emotion: Annotated[str, typer.Option("--emotion", help="Only features of this one.")] = "",
    flagged: Annotated[
        bool, typer.Option("--flagged", help="Only those whose explanation does not match.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", help="Most features to print.")] = 30,
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """Show the features that single out an emotion, best confirmed first, or those explained."""
    from emotui.cache.label_rows import label_rows, shown_rows

    with cache_for(cache_dir, private=False) as root:
        rows = [
            row
            for row in label_rows(root, name)
            if (flagged or row.emotion or row.area is None)
            and (not emotion or row.emotion == emotion)
            and (not flagged or row.flag)
        ][: max(limit, 0)]
    if as_json:
        _print_json(rows)
        return
    if not rows:
        say("No feature is labelled so; `emotui labels show FILE` shows those that are.")
        return
    for line in shown_rows(rows, limit=len(rows)):
        typer.echo(line)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="A file of `emotui labels list`.")],
    cache_dir: CacheDir = None,
) -> None:
    """Remove one file of labels."""
    from emotui.cache.labels import remove as remove_file

    with cache_for(cache_dir, private=False) as root:
        remove_file(root, name)
    say(f"Removed {name}.")


def _print_json(value: Sequence[Any] | msgspec.Struct) -> None:
    document = msgspec.json.format(msgspec.json.encode(value, order="deterministic"), indent=1)
    sys.stdout.buffer.write(document + b"\n")
    sys.stdout.buffer.flush()
