"""`emotui inspect`: traces without the screen."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from emotui.cache.demo import is_demo
from emotui.commands.common import cache_for, say, show_error, wait_for
from emotui.commands.texts import text_of_argument, texts_of_file
from emotui.commands.verify import check_edits, verified
from emotui.core.edits import parse_edit, recipe_named
from emotui.core.errors import EmotuiError, UsageError
from emotui.core.protocol import FitRequest, Inspected, InspectRequest, Loaded, LoadRequest
from emotui.core.records import Trace

if TYPE_CHECKING:
    from emotui.cache.prepare import Prepared
    from emotui.cache.store import Store
    from emotui.core.client import EngineClient


class InspectOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `emotui inspect` was asked to do besides the request itself."""

    edits: tuple[str, ...] = ()
    """As typed, recipes (`@name`) among them; where one acts if it does not say is its kind's."""
    file: Path | None = None
    text_column: str | None = None
    selected: bool = False
    """Whether what is edited was picked from what the text shows."""
    fit: bool = False
    all_sites: bool = False
    metric: str = "top"
    form: Literal["text", "json", "jsonl"] = "text"
    all_tokens: bool = False
    out: Path | None = None
    force: bool = False
    stats: bool = False
    seed: int = 0
    verify: int = 0
    """Other texts to repeat the last edit on; 0 for not."""


class Tally(msgspec.Struct):
    """What the run cost; one line on stderr with `--stats json`."""

    texts: int = 0
    failed: int = 0
    cache_hits: int = 0
    forwards: int = 0
    """Runs of the model; one that took a batch of texts through it counts once."""
    batched: int = 0
    """Texts that went through the model in batches."""
    seconds: float = 0.0
    engine_seconds: float = 0.0
    """Of them, in the engine, inspecting."""
    estimate_bytes: int = 0
    """The largest peak of memory that was estimated; 0 where nothing was computed."""
    peak_bytes: int = 0
    """The most the engine held: the process, or PyTorch on an accelerator."""


def inspect_texts(
    text: str | None,
    request: InspectRequest,
    options: InspectOptions,
    *,
    cache_dir: Path | None,
    private: bool,
) -> None:
    """Print, or write with `-o`, the trace of one text or of each text of a file.

    A text of a file that fails is reported on stderr and the others go on; the exit code is then
    1. Raises UsageError where there is no text or too many.
    """
    texts = _texts(text, options)
    # A recipe stays as it is until the model it must be of is known.
    edits = tuple(
        line.strip() if recipe_named(line) else str(parse_edit(line)) for line in options.edits
    )
    if options.form == "json" and len(texts) != 1:
        raise UsageError(
            f"--json prints one document; there are {len(texts)} texts.", todo="Use --jsonl."
        )
    if options.verify:
        check_edits(edits)
    started = time.monotonic()
    tally = Tally()
    with cache_for(cache_dir, private=private, demo=is_demo(request.spec)) as root:
        request = msgspec.structs.replace(
            request,
            cache_dir=str(root),
            edits=edits,
            selected=options.selected and bool(edits),
            all_sites=options.all_sites,
            metric=options.metric,
            seed=options.seed,
        )
        _inspect_all(texts, request, options, root, tally)
    tally.seconds = round(time.monotonic() - started, 3)
    if options.stats:
        say(msgspec.json.encode(tally).decode())
    if tally.failed:
        raise EmotuiError(
            f"{tally.failed} of {tally.texts} texts could not be inspected.",
            todo="The lines above say why; the others are done and cached.",
        )


def _texts(text: str | None, options: InspectOptions) -> list[str]:
    if options.file is not None:
        if text is not None:
            raise UsageError("There is a text and a --file.", todo="Give one of the two.")
        texts = texts_of_file(options.file, column=options.text_column)
        if not texts:
            raise UsageError("The file holds no text.", todo="Give a file with one text a line.")
        return texts
    if text is None:
        raise UsageError(
            "There is no text to inspect.", todo="Give one, or - for standard input, or --file."
        )
    return [text_of_argument(text)]


def _inspect_all(
    texts: list[str], request: InspectRequest, options: InspectOptions, root: Path, tally: Tally
) -> None:
    from emotui.cache.prepare import prepare
    from emotui.cache.recipes import with_recipes
    from emotui.cache.store import Store
    from emotui.commands.batches import Batches
    from emotui.core.client import EngineClient

    outputs: list[bytes] = []
    offline = request.spec.offline
    with Store.open(root) as store, EngineClient(root, offline=offline) as client:
        fingerprint = _ready(request, options, store, client)
        if fingerprint is not None:
            edits = with_recipes(request.edits, root, fingerprint, model=request.spec.model)
            request = msgspec.structs.replace(request, edits=edits)

        def prepared_for(text: str) -> Prepared:
            one = msgspec.structs.replace(request, text=text)
            return prepare(one, store, fingerprint=fingerprint)

        batches = Batches(client, prepared_for)
        for text, ready in batches.of(texts):
            tally.texts += 1
            try:
                # What was found before its turn may have been evicted since.
                if ready is None or ready.trace_id is not None:
                    ready = prepared_for(text)
                trace = _trace_of(ready, store, client, tally)
                if options.verify:
                    verified(ready.request, trace, options.verify, store, client)
            except EmotuiError as error:
                if len(texts) == 1:
                    raise
                tally.failed += 1
                show_error(error, of=f"text {tally.texts} of {len(texts)}")
                continue
            output = _output(trace, store, options)
            if options.out is None:
                sys.stdout.buffer.write(output)
                sys.stdout.flush()
            else:
                outputs.append(output)
        tally.forwards += batches.forwards
        tally.batched = batches.texts
        if options.out is not None:
            from emotui.core.export.json import write_file

            target = write_file(options.out, b"".join(outputs), overwrite=options.force)
            say(f"Wrote {target}")


def _ready(
    request: InspectRequest, options: InspectOptions, store: Store, client: EngineClient
) -> str | None:
    """Return the fingerprint where it is known; fit probes first where that was asked for."""
    from emotui.cache.prepare import prepare

    prepared = prepare(request, store)
    fingerprint = prepared.fingerprint
    if fingerprint is None:
        loaded = wait_for(client.submit(LoadRequest(request.spec, request.cache_dir)))
        assert isinstance(loaded, Loaded)
        fingerprint = loaded.fingerprint
        prepared = prepare(request, store, fingerprint=fingerprint)
    if options.fit and not prepared.request.probes:
        wait_for(
            client.submit(
                FitRequest(
                    spec=request.spec,
                    cache_dir=request.cache_dir,
                    template=request.template,
                    label_set=request.label_set,
                    seed=options.seed,
                )
            )
        )
        prepared = prepare(request, store, fingerprint=fingerprint)
    if not prepared.request.probes:
        say(
            "No probes are fitted for this model and template, so there are no readouts; "
            "add --fit to fit them."
        )
    return fingerprint


def _trace_of(prepared: Prepared, store: Store, client: EngineClient, tally: Tally) -> Trace:
    if prepared.trace_id is not None:
        tally.cache_hits += 1
        return store.get_trace(prepared.trace_id)
    done = wait_for(client.submit(prepared.request))
    assert isinstance(done, Inspected)
    tally.forwards += done.forwards
    tally.cache_hits += done.cached
    tally.engine_seconds = round(tally.engine_seconds + done.seconds, 3)
    tally.estimate_bytes = max(tally.estimate_bytes, done.estimate_bytes)
    tally.peak_bytes = max(tally.peak_bytes, done.peak_bytes)
    return store.get_trace(done.trace_id)


def _output(trace: Trace, store: Store, options: InspectOptions) -> bytes:
    from emotui.cache.findings import verification_of

    verification = verification_of(store, trace.id)
    if options.form == "text":
        from emotui.commands.report import report_of
        from emotui.core.export.verification import lines_of

        page = report_of(trace, store.get_trace(trace.parent) if trace.parent else None)
        if options.verify and verification is not None:
            page += "\n" + "\n".join(lines_of(verification)) + "\n"
        return page.encode()
    from emotui.cache.lineage import ancestors_of
    from emotui.cache.notes import notes_of
    from emotui.core.export.json import document_bytes

    ancestors = ancestors_of(trace, store)
    notes = notes_of(store.root, (one.id for one in (trace, *ancestors)))
    return document_bytes(
        trace,
        ancestors=ancestors,
        notes=notes,
        verification=verification,
        all_tokens=options.all_tokens,
    )
