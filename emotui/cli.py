"""The commands: `emotui ARGS` is `emotui open ARGS` unless the first word is a command."""

from __future__ import annotations

import difflib
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from emotui import __version__
from emotui.commands.options import (
    NO_SAES,
    AllSites,
    AsJson,
    CacheDir,
    Edits,
    Force,
    KeepOptions,
    ModelOptions,
    Out,
    ReadOptions,
    SaeOptions,
    Text,
    choice,
    in_groups,
    request_of,
)
from emotui.core.errors import Cancelled, EmotuiError, UsageError
from emotui.core.protocol import GenerationSpec

app = typer.Typer(
    name="emotui",
    help="A terminal explorer for how a local language model represents emotion.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


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
@in_groups
def open_explorer(
    model: ModelOptions,
    saes: SaeOptions,
    prompt: ReadOptions,
    keep: KeepOptions,
    text: Text = None,
    all_sites: AllSites = False,
    theme: Annotated[str | None, typer.Option(help="The colours.", envvar="EMOTUI_THEME")] = None,
    mouse: Annotated[
        bool | None, typer.Option("--mouse/--no-mouse", help="Off over SSH by default.")
    ] = None,
) -> None:
    """Open the explorer (the default command)."""
    from emotui.commands.explore import explore

    explore(
        text,
        request_of(text, model, saes, prompt, cache_dir=keep.cache_dir),
        all_sites=all_sites,
        cache_dir=keep.cache_dir,
        private=keep.private,
        theme=theme,
        mouse=mouse,
    )


@app.command()
@in_groups
def inspect(
    model: ModelOptions,
    saes: SaeOptions,
    prompt: ReadOptions,
    keep: KeepOptions,
    text: Text = None,
    do: Edits = None,
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
    as_json: AsJson = False,
    as_jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Print one JSON document a line.")
    ] = False,
    tokens: Annotated[
        str, typer.Option("--tokens", help="`readout`, or `all` tokens in the JSON.")
    ] = "readout",
    out: Out = None,
    force: Force = False,
    stats: Annotated[
        str | None, typer.Option("--stats", help="`json`: one line of statistics on stderr.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
) -> None:
    """Print the trace of a text: the same records as the screen, without it."""
    from emotui.commands.inspect import InspectOptions, inspect_texts

    request = request_of(text, model, saes, prompt, cache_dir=keep.cache_dir)
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
            all_tokens=choice("--tokens", tokens, ("readout", "all")) == "all",
            out=out,
            force=force,
            stats=stats is not None and bool(choice("--stats", stats, ("json",))),
            seed=seed,
            verify=verify_texts if verify else 0,
        ),
        cache_dir=keep.cache_dir,
        private=keep.private,
    )


@app.command()
@in_groups
def generate(
    model: ModelOptions,
    saes: SaeOptions,
    prompt: ReadOptions,
    keep: KeepOptions,
    text: Text = None,
    do: Edits = None,
    new_tokens: Annotated[int, typer.Option("--new-tokens", help="Most tokens to write.")] = 40,
    temperature: Annotated[
        float, typer.Option("--temperature", help="0 takes the likeliest token.")
    ] = 0.0,
    samples: Annotated[
        int, typer.Option("--samples", help="Texts to write, each with a seed of its own.")
    ] = 1,
    seed: Annotated[int, typer.Option(help="Of the first text.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Continue a text without edits and with them, and read again what was written."""
    from emotui.commands.generate import generate_text

    request = request_of(text, model, saes, prompt, cache_dir=keep.cache_dir)
    generate_text(
        text,
        msgspec.structs.replace(
            request, generation=GenerationSpec(new_tokens, temperature, samples), seed=seed
        ),
        edits=tuple(do or ()),
        as_json=as_json,
        cache_dir=keep.cache_dir,
        private=keep.private,
    )


@app.command()
@in_groups
def where(
    model: ModelOptions,
    prompt: ReadOptions,
    keep: KeepOptions,
    text: Text = None,
    emotion: Annotated[str, typer.Option("--emotion", help="One of the labels.")] = "",
    neutral: Annotated[
        str | None,
        typer.Option("--neutral", help="A neutral rewrite; without one, texts of the corpus."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say at which layers an emotion of a text is readable, used and written."""
    from emotui.commands.where import tell_where

    request = request_of(text, model, NO_SAES, prompt, cache_dir=keep.cache_dir)
    tell_where(
        text,
        request,
        emotion=emotion,
        neutral=neutral,
        as_json=as_json,
        cache_dir=keep.cache_dir,
        private=keep.private,
    )


@app.command()
def export(
    trace: Annotated[str, typer.Argument(help="A trace id, its beginning, or a JSON file.")],
    to: Annotated[
        str, typer.Option("--to", help="The format: json, py, md, html, csv or neuronpedia.")
    ] = "json",
    tokens: Annotated[str, typer.Option("--tokens", help="`readout`, or `all`.")] = "readout",
    out: Out = None,
    force: Force = False,
    cache_dir: CacheDir = None,
) -> None:
    """Write a cached trace and its ancestors as a file for other programs."""
    from emotui.commands.export import FORMATS, REFUSED, export_trace

    if to != REFUSED:
        choice("--to", to, FORMATS)
    every = choice("--tokens", tokens, ("readout", "all")) == "all"
    export_trace(trace, to=to, all_tokens=every, out=out, force=force, cache_dir=cache_dir)


@app.command()
def models(
    query: Annotated[
        str, typer.Argument(help="A part of a model's or a release's name; a whole release.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """List models by name, and the pretrained SAEs there are for them."""
    from emotui.commands.models import list_models

    list_models(query, as_json=as_json)


@app.command()
@in_groups
def doctor(model: ModelOptions, cache_dir: CacheDir = None) -> None:
    """Check the installation and, with a model, that hooked and plain runs agree."""
    from emotui.commands.doctor import diagnose

    diagnose(None if model.model is None else model.spec(), cache_dir=cache_dir)


def _add_groups() -> None:
    """Add the commands of modules of their own; the others start quicker without them."""
    from emotui.commands.asked import consistency, terms
    from emotui.commands.cache import app as cache_app
    from emotui.commands.compare import compare
    from emotui.commands.directions import add_directions
    from emotui.commands.emotion import app as emotion_app
    from emotui.commands.feature import feature
    from emotui.commands.labels import app as labels_app
    from emotui.commands.note import note
    from emotui.commands.probe import app as probe_app
    from emotui.commands.recipe import app as recipe_app
    from emotui.commands.study import app as study_app
    from emotui.commands.without import without

    add_directions(probe_app)
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
    code = _run(with_command(arguments), debug=debug)
    if code == UsageError.exit_code and (meant := nearest_command(arguments)):
        typer.echo(f"Did you mean: emotui {meant}?", err=True)
    sys.exit(code)


def nearest_command(arguments: Sequence[str]) -> str | None:
    """Return the command that a mistyped first word is nearest to; None where it is no such word.

    A first word alone is a text to open, however near.
    """
    if len(arguments) < 2 or arguments[0] in COMMANDS or not arguments[0].isalpha():
        return None
    near = difflib.get_close_matches(arguments[0].lower(), COMMANDS, n=1, cutoff=0.7)
    return near[0] if near else None


_CommandLineError: Any = typer.BadParameter.__mro__[2]
"""Click's base of all errors in the words of a command line; typer carries its own Click."""


_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _write_no_more() -> None:
    """Let what is left for stdout go nowhere: writing it at the exit would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: list[str], *, debug: bool) -> int:
    if arguments[0] in (*GROUPS, *_ROOT_OPTIONS):
        _add_groups()
    command = typer.main.get_command(app)
    try:
        code = command.main(arguments, prog_name="emotui", standalone_mode=False)
        sys.stdout.flush()
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
        _write_no_more()
        return 1
    except OSError as error:
        if debug or error.errno not in _DISK_ERRORS:
            raise
        _write_no_more()
        typer.echo(f"emotui: The results could not be written.\n  {error.strerror}.", err=True)
        return 1
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    main()
