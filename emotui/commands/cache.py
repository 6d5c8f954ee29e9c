"""`emotui cache`: what is kept on disk, whether it is sound, and making room."""

from __future__ import annotations

import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from emotui.commands.common import cache_for, say
from emotui.core.errors import CacheError, Cancelled, UsageError
from emotui.core.text import clean

app = typer.Typer(
    help="What is kept on disk: list, show, path, verify, prune, clear, pin, delete.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

CacheDir = Annotated[
    Path | None,
    typer.Option("--cache-dir", help="Where traces are kept.", envvar="EMOTUI_CACHE_DIR"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
TraceId = Annotated[str, typer.Argument(help="A trace id or its beginning.")]

_TEXT_WIDTH = 60
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


def _print_json(value: Any) -> None:
    sys.stdout.buffer.write(
        msgspec.json.format(msgspec.json.encode(value, order="deterministic"), indent=1) + b"\n"
    )
    sys.stdout.buffer.flush()


def _human(size: int) -> str:
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _bytes_of(text: str) -> int:
    """Return a size such as `500MB`, `2GiB` or `0` in bytes; UsageError for anything else."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise UsageError(
            f"{clean(text)!r} is no size.", todo="Write a number and a unit, such as 500MB or 2GB."
        )
    number, unit, binary = found.groups()
    scale = _UNITS[unit.lower()]
    if binary:
        scale = {1: 1, 10**3: 2**10, 10**6: 2**20, 10**9: 2**30, 10**12: 2**40}[scale]
    return int(float(number) * scale)


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")[:19]


def _excerpt(text: str) -> str:
    line = clean(" ".join(text.split()))
    return line if len(line) <= _TEXT_WIDTH else line[: _TEXT_WIDTH - 1] + "…"


@app.command("list")
def list_traces(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="Words of the text, and model:NAME since:DAY until:DAY edits:WORD is:pinned "
            "is:edited is:root."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="How many; 0 is all.")] = 50,
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """List traces, newest first."""
    from emotui.cache.search import found_by, parse_search
    from emotui.cache.store import Store

    search = parse_search(" ".join(words or ()))
    with cache_for(cache_dir, private=False) as root, Store.open(root) as store:
        rows = found_by(search, store, limit=limit or None)
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        marks = "*" if row.pinned else " "
        edits = f" [{_counted(len(row.edits), 'edit')}]" if row.edits else ""
        name = clean(row.model.rstrip("/").rsplit("/", 1)[-1])[:20]
        typer.echo(f"{row.id}{marks} {_when(row.created)}  {name:<20} {_excerpt(row.text)}{edits}")
    say(f"{_counted(len(rows), 'trace')}{' (* pinned)' if any(r.pinned for r in rows) else ''}")


@app.command()
def show(trace: TraceId, as_json: AsJson = False, cache_dir: CacheDir = None) -> None:
    """Show what a trace is of; `emotui export` writes the trace itself."""
    from emotui.cache.index import ShownTrace
    from emotui.cache.store import Store

    with cache_for(cache_dir, private=False) as root, Store.open(root) as store:
        found = store.get_trace(trace)
        row = store.row_of(found.id)
    shown = ShownTrace(
        **msgspec.structs.asdict(row),
        readouts=len(found.readouts.value),
        features=len(found.features.activation),
        probes=tuple(probe.id for probe in found.probes),
        saes=tuple(sae.sae for sae in found.saes),
        answer=None if found.answer is None else found.answer.labels,
    )
    if as_json:
        _print_json(shown)
        return
    facts = msgspec.structs.asdict(shown)
    facts["created"] = _when(row.created)
    facts["size"] = _human(row.size)
    if found.answer is not None:
        best = max(found.answer.labels.items(), key=lambda item: item[1])
        facts["answer"] = f"{best[0]} {best[1]:.2f}"
    for name, value in facts.items():
        words = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        if words not in (None, ""):
            typer.echo(f"{name.replace('_', ' '):<12} {clean(str(words))}")


@app.command()
def path(cache_dir: CacheDir = None) -> None:
    """Print the folder of the cache."""
    with cache_for(cache_dir, private=False) as root:
        typer.echo(str(root))


@app.command()
def size(as_json: AsJson = False, cache_dir: CacheDir = None) -> None:
    """Show what the cache takes on disk."""
    from emotui.cache.store import Amount, Store

    with cache_for(cache_dir, private=False) as root, Store.open(root) as store:
        sizes = store.size()
    if as_json:
        _print_json(sizes)
        return
    for name in sizes.__struct_fields__:
        amount = getattr(sizes, name)
        if isinstance(amount, Amount):
            typer.echo(f"{name:<12} {amount.count:>7} {_human(amount.bytes):>10}")
    typer.echo(f"{'budget':<12} {'':>7} {_human(sizes.budget_bytes):>10}")


@app.command()
def verify(as_json: AsJson = False, cache_dir: CacheDir = None) -> None:
    """Read every file and check it; damaged ones are set aside. Exit code 1 if there were any."""
    from emotui.cache.store import Store

    with cache_for(cache_dir, private=False) as root, Store.open(root) as store:
        report = store.verify()
    if as_json:
        _print_json(report)
    else:
        typer.echo(f"checked      {report.checked}")
        typer.echo(f"damaged      {len(report.damaged)}")
        for name in report.damaged:
            typer.echo(f"  {name}")
        typer.echo(f"listed anew  {report.listed_again}")
        typer.echo(f"unfinished   {report.unfinished}")
    if report.damaged:
        raise CacheError(
            f"{_counted(len(report.damaged), 'file')} in the cache "
            f"{'was' if len(report.damaged) == 1 else 'were'} damaged.",
            why="A file was cut short or changed after it was written.",
            todo="Nothing else is needed: what is missing is computed again when it is asked for. "
            "If it recurs, check the disk.",
        )


@app.command()
def prune(
    to: Annotated[str | None, typer.Option("--to", help="How much may stay, such as 2GB.")] = None,
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """Evict what was least recently used; pinned and open traces stay."""
    from emotui.cache.store import Store

    budget = None if to is None else _bytes_of(to)
    with cache_for(cache_dir, private=False) as root, Store.open(root) as store:
        freed = store.prune(budget)
    _report_freed(freed, as_json=as_json)


@app.command()
def clear(
    everything: Annotated[
        bool, typer.Option("--all", help="Pinned traces, fitted probes and converted SAEs too.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """Remove all traces and activations; pinned traces, probes and SAEs stay unless --all."""
    from emotui.cache.store import Store

    with cache_for(cache_dir, private=False) as root, Store.open(root) as store:
        if not yes:
            if not sys.stdin.isatty():
                raise UsageError(
                    "Nothing was removed: there is no terminal to ask on.",
                    todo="Add --yes to clear without a question.",
                )
            rest = ", pinned traces, probes and SAEs included" if everything else ""
            if not typer.confirm(f"Remove everything in {clean(str(root))}{rest}?", err=True):
                raise Cancelled("Nothing was removed.")
        freed = store.clear(everything=everything)
        stays = store.size()
    _report_freed(freed, as_json=as_json)
    for what, amount in (("probes", stays.probes), ("converted SAEs", stays.saes)):
        if amount.count:
            say(f"{_human(amount.bytes)} of {what} stayed; --all removes them too.")


def _report_freed(freed: Any, *, as_json: bool) -> None:
    if as_json:
        _print_json(freed)
    else:
        typer.echo(f"Removed {_counted(freed.count, 'file')}, {_human(freed.bytes)}.")


@app.command()
def pin(
    trace: TraceId,
    off: Annotated[bool, typer.Option("--off", help="No longer.")] = False,
    cache_dir: CacheDir = None,
) -> None:
    """Keep a trace whatever the budget."""
    from emotui.cache.store import Store

    with cache_for(cache_dir, private=False) as root, Store.open(root) as store:
        typer.echo(store.pin(trace, not off))


@app.command()
def delete(trace: TraceId, cache_dir: CacheDir = None) -> None:
    """Remove one trace."""
    from emotui.cache.store import Store

    with cache_for(cache_dir, private=False) as root, Store.open(root) as store:
        typer.echo(store.delete(trace))
