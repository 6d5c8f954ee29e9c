"""The commands: `emotui ARGS` is `emotui open ARGS` unless the first word is a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from emotui import __version__
from emotui.core.emotions import DEFAULT_LABEL_SET
from emotui.core.errors import Cancelled, EmotuiError, UsageError
from emotui.core.protocol import GenerationSpec, InspectRequest, ModelSpec
from emotui.core.sizes import bytes_of
from emotui.core.text import DEFAULT_TEMPLATE, clean

app = typer.Typer(
    name="emotui",
    help="A terminal explorer for how a local language model represents emotion.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Text = Annotated[str | None, typer.Argument(help="The text; - reads standard input.")]
Model = Annotated[str | None, typer.Option("--model", help="A local folder, a hub id or an alias.")]
Revision = Annotated[str | None, typer.Option(help="A branch, tag or commit of a hub model.")]
Sae = Annotated[
    list[str] | None, typer.Option("--sae", help="A folder, a params.npz, RELEASE[:ID], or none.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps or auto.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, int8, nf4 or auto.")]
DeviceMap = Annotated[
    str | None, typer.Option("--device-map", help="auto: the layers spread over all GPUs.")
]
SaeMemoryLimit = Annotated[
    str | None,
    typer.Option("--sae-memory", help="SAE weights held at a time, as 8GiB; what is free."),
]
TemplateName = Annotated[str, typer.Option("--template", help="The prompt around the text.")]
AllSites = Annotated[bool, typer.Option("--all-sites", help="Attention, MLP of every token.")]
LabelSet = Annotated[str, typer.Option("--labels", help="The set of emotion labels.")]
Offline = Annotated[bool, typer.Option("--offline", help="Make no connection.")]
Private = Annotated[
    bool, typer.Option("--private", help="Keep nothing of this session on the disk.")
]
CacheDir = Annotated[
    Path | None,
    typer.Option("--cache-dir", help="Where traces are kept.", envvar="EMOTUI_CACHE_DIR"),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"emotui {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
    _debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """A terminal explorer for how a local language model represents emotion."""


@app.command("open")
def open_explorer(
    text: Text = None,
    model: Model = None,
    sae: Sae = None,
    revision: Revision = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    sae_memory: SaeMemoryLimit = None,
    template: TemplateName = DEFAULT_TEMPLATE,
    labels: LabelSet = DEFAULT_LABEL_SET,
    offline: Offline = False,
    private: Private = False,
    cache_dir: CacheDir = None,
    all_sites: AllSites = False,
    theme: Annotated[str | None, typer.Option(help="The colours.")] = None,
    mouse: Annotated[
        bool | None, typer.Option("--mouse/--no-mouse", help="Off over SSH by default.")
    ] = None,
) -> None:
    """Open the explorer (the default command)."""
    from emotui.commands.explore import explore

    explore(
        text,
        _request(
            text,
            model,
            sae,
            revision,
            device,
            dtype,
            template,
            labels,
            offline,
            cache_dir,
            device_map=device_map,
            sae_memory=sae_memory,
        ),
        all_sites=all_sites,
        cache_dir=cache_dir,
        private=private,
        theme=theme,
        mouse=mouse,
    )


@app.command()
def inspect(
    text: Text = None,
    model: Model = None,
    sae: Sae = None,
    revision: Revision = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    sae_memory: SaeMemoryLimit = None,
    template: TemplateName = DEFAULT_TEMPLATE,
    labels: LabelSet = DEFAULT_LABEL_SET,
    do: Annotated[
        list[str] | None, typer.Option("--do", help="An edit, as 'ablate L5/12 at all', or @name.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Repeat the last edit on other texts.")
    ] = False,
    verify_texts: Annotated[
        int, typer.Option("--verify-texts", min=1, help="How many of them.")
    ] = 50,
    file: Annotated[
        Path | None, typer.Option("--file", help="Texts: .jsonl, .csv, .tsv, or one a line.")
    ] = None,
    text_column: Annotated[
        str | None, typer.Option("--text-column", help="The column that holds the texts.")
    ] = None,
    selected: Annotated[
        bool, typer.Option("--selected", help="What is edited was picked from this text's trace.")
    ] = False,
    fit: Annotated[bool, typer.Option("--fit", help="Fit probes first if there are none.")] = False,
    all_sites: AllSites = False,
    metric: Annotated[
        str,
        typer.Option(
            "--metric",
            help="What is attributed: top, answer.EMOTION, readout.EMOTION[@L5] or none.",
        ),
    ] = "top",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    as_jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Print one JSON document a line.")
    ] = False,
    tokens: Annotated[
        str, typer.Option("--tokens", help="`readout`, or `all` tokens in the JSON.")
    ] = "readout",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write to a file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite that file.")] = False,
    stats: Annotated[
        str | None, typer.Option("--stats", help="`json`: one line of statistics on stderr.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    offline: Offline = False,
    private: Private = False,
    cache_dir: CacheDir = None,
) -> None:
    """Print the trace of a text: the same records as the screen, without it."""
    from emotui.commands.inspect import InspectOptions, inspect_texts

    request = _request(
        text,
        model,
        sae,
        revision,
        device,
        dtype,
        template,
        labels,
        offline,
        cache_dir,
        device_map=device_map,
        sae_memory=sae_memory,
    )
    inspect_texts(
        text,
        request,
        InspectOptions(
            edits=tuple(do or ()),
            file=file,
            text_column=text_column,
            selected=selected,
            fit=fit,
            all_sites=all_sites,
            metric=metric,
            form="json" if as_json else "jsonl" if as_jsonl else "text",
            all_tokens=_choice("--tokens", tokens, ("readout", "all")) == "all",
            out=out,
            force=force,
            stats=stats is not None and bool(_choice("--stats", stats, ("json",))),
            seed=seed,
            verify=verify_texts if verify else 0,
        ),
        cache_dir=cache_dir,
        private=private,
    )


@app.command()
def generate(
    text: Text = None,
    model: Model = None,
    sae: Sae = None,
    revision: Revision = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    sae_memory: SaeMemoryLimit = None,
    template: TemplateName = DEFAULT_TEMPLATE,
    labels: LabelSet = DEFAULT_LABEL_SET,
    do: Annotated[
        list[str] | None, typer.Option("--do", help="An edit, as 'ablate L5/12 at all', or @name.")
    ] = None,
    new_tokens: Annotated[int, typer.Option("--new-tokens", help="Most tokens to write.")] = 40,
    temperature: Annotated[
        float, typer.Option("--temperature", help="0 takes the likeliest token.")
    ] = 0.0,
    samples: Annotated[
        int, typer.Option("--samples", help="Texts to write, each with a seed of its own.")
    ] = 1,
    seed: Annotated[int, typer.Option(help="Of the first text.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    offline: Offline = False,
    private: Private = False,
    cache_dir: CacheDir = None,
) -> None:
    """Continue a text without edits and with them, and read again what was written."""
    from emotui.commands.generate import generate_text

    request = _request(
        text,
        model,
        sae,
        revision,
        device,
        dtype,
        template,
        labels,
        offline,
        cache_dir,
        device_map=device_map,
        sae_memory=sae_memory,
    )
    generate_text(
        text,
        msgspec.structs.replace(
            request, generation=GenerationSpec(new_tokens, temperature, samples), seed=seed
        ),
        edits=tuple(do or ()),
        as_json=as_json,
        cache_dir=cache_dir,
        private=private,
    )


@app.command()
def where(
    text: Text = None,
    emotion: Annotated[str, typer.Option("--emotion", help="One of the labels.")] = "",
    neutral: Annotated[
        str | None,
        typer.Option("--neutral", help="A neutral rewrite; without one, texts of the corpus."),
    ] = None,
    model: Model = None,
    revision: Revision = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    template: TemplateName = DEFAULT_TEMPLATE,
    labels: LabelSet = DEFAULT_LABEL_SET,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    offline: Offline = False,
    private: Private = False,
    cache_dir: CacheDir = None,
) -> None:
    """Say at which layers an emotion of a text is readable, used and written."""
    from emotui.commands.where import tell_where

    request = _request(
        text, model, ["none"], revision, device, dtype, template, labels, offline, cache_dir
    )
    tell_where(
        text,
        request,
        emotion=emotion,
        neutral=neutral,
        as_json=as_json,
        cache_dir=cache_dir,
        private=private,
    )


@app.command()
def export(
    trace: Annotated[str, typer.Argument(help="A trace id, its beginning, or a JSON file.")],
    to: Annotated[str, typer.Option("--to", help="The format: json, py, md or neuronpedia.")] = "json",
    tokens: Annotated[str, typer.Option("--tokens", help="`readout`, or `all`.")] = "readout",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write to a file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite that file.")] = False,
    cache_dir: CacheDir = None,
) -> None:
    """Write a cached trace and its ancestors as a file for other programs."""
    from emotui.commands.export import FORMATS, export_trace

    _choice("--to", to, FORMATS)
    every = _choice("--tokens", tokens, ("readout", "all")) == "all"
    export_trace(trace, to=to, all_tokens=every, out=out, force=force, cache_dir=cache_dir)


@app.command()
def models(
    query: Annotated[
        str, typer.Argument(help="A part of a model's or a release's name; a whole release.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List models by name, and the pretrained SAEs there are for them."""
    from emotui.commands.models import list_models

    list_models(query, as_json=as_json)


@app.command()
def doctor(
    model: Model = None,
    revision: Revision = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    offline: Offline = False,
    cache_dir: CacheDir = None,
) -> None:
    """Check the installation and, with a model, that hooked and plain runs agree."""
    from emotui.commands.doctor import diagnose

    spec = None
    if model is not None:
        spec = ModelSpec(
            model=model,
            revision=revision,
            dtype=dtype,
            device=device,
            offline=offline,
            device_map=_device_map(device_map),
        )
    diagnose(spec, cache_dir=cache_dir)


def _request(
    text: str | None,
    model: str | None,
    sae: Sequence[str] | None,
    revision: str | None,
    device: str,
    dtype: str,
    template: str,
    labels: str,
    offline: bool,
    cache_dir: Path | None,
    *,
    device_map: str | None = None,
    sae_memory: str | None = None,
) -> InspectRequest:
    from emotui.cache.demo import demo_saes, demo_spec
    from emotui.commands.models import sae_sources

    if model is None:
        spec = demo_spec(dtype=dtype, device=device)
        sae = sae or demo_saes()
    else:
        spec = ModelSpec(
            model=model, revision=revision, dtype=dtype, device=device, offline=offline
        )
    spec = msgspec.structs.replace(
        spec,
        device_map=_device_map(device_map),
        sae_memory=None if sae_memory is None else bytes_of(sae_memory),
    )
    sae = sae_sources(spec.model, sae or (), offline=offline, cache_dir=cache_dir)
    return InspectRequest(
        spec=spec,
        text=text or "",
        cache_dir="",
        template=template,
        label_set=labels,
        saes=sae,
    )


def _device_map(value: str | None) -> str | None:
    return None if value is None else _choice("--device-map", value, ("auto",))


def _choice(option: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise UsageError(
            f"{option} cannot be {clean(value)!r}.", todo=f"Use {' or '.join(allowed)}."
        )
    return value


def _add_groups() -> None:
    """Add the commands of modules of their own; the others start quicker without them."""
    import emotui.commands.directions  # noqa: F401  adds its commands to those of the probes
    from emotui.commands.asked import consistency, terms
    from emotui.commands.cache import app as cache_app
    from emotui.commands.compare import compare
    from emotui.commands.emotion import app as emotion_app
    from emotui.commands.feature import feature
    from emotui.commands.labels import app as labels_app
    from emotui.commands.note import note
    from emotui.commands.probe import app as probe_app
    from emotui.commands.recipe import app as recipe_app
    from emotui.commands.study import app as study_app
    from emotui.commands.without import without

    app.add_typer(cache_app, name="cache")
    app.add_typer(emotion_app, name="emotion")
    app.add_typer(labels_app, name="labels")
    app.add_typer(probe_app, name="probe")
    app.add_typer(recipe_app, name="recipe")
    app.add_typer(study_app, name="study")
    for command in (compare, consistency, feature, note, terms, without):
        app.command()(command)


GROUPS = (
    *("cache", "compare", "consistency", "emotion", "feature", "labels", "note", "probe"),
    *("recipe", "study", "terms", "without"),
)
COMMANDS = ("open", "inspect", "generate", "where", "models", "export", "doctor", *GROUPS)
_ROOT_OPTIONS = ("--help", "-h", "--version")


def with_command(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `open` put first unless they name a command or ask for help."""
    if arguments and (arguments[0] in COMMANDS or arguments[0] in _ROOT_OPTIONS):
        return list(arguments)
    return ["open", *arguments]


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 failed or partial, 2 wrong usage, 130 cancelled."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or bool(os.environ.get("EMOTUI_DEBUG"))
    arguments = [argument for argument in arguments if argument != "--debug"]
    sys.exit(_run(with_command(arguments), debug=debug))


_CommandLineError: Any = typer.BadParameter.__mro__[2]
"""Click's base of all errors in the words of a command line; typer carries its own Click."""


def _run(arguments: list[str], *, debug: bool) -> int:
    if arguments[0] in (*GROUPS, *_ROOT_OPTIONS):
        _add_groups()
    command = typer.main.get_command(app)
    try:
        code = command.main(arguments, prog_name="emotui", standalone_mode=False)
    except EmotuiError as error:
        if debug:
            raise
        from emotui.commands.common import show_error

        show_error(error)
        return error.exit_code
    except _CommandLineError as problem:
        problem.show()
        return int(problem.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        typer.echo("Cancelled.", err=True)
        return Cancelled.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    main()
