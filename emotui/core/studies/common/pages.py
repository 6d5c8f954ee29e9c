"""The files a reader opens: result.json with its schema, CSV, Markdown, and a page with plots."""

from __future__ import annotations

import csv
import io
import math
import shlex
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import msgspec

from emotui.cache import files
from emotui.core.studies.common import folder as folders
from emotui.core.studies.common.folder import StudyDocument, StudyRun
from emotui.core.studies.common.plots import svg_of_heat, svg_of_plot
from emotui.core.studies.common.report import Cell, Report, Table, shown_p
from emotui.core.studies.common.rows import BundledRows
from emotui.core.studies.table import study_named
from emotui.core.text import clean

Rows = tuple[Sequence[str], Iterable[Sequence[Cell]]]
_Result = TypeVar("_Result")
_P_COLUMNS = frozenset({"p", "q", "mcnemar_p", "p of the best layer"})
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;"
    "color:#222}table{border-collapse:collapse;font-size:13px;margin:1rem 0}"
    "td,th{padding:2px 8px;border-bottom:1px solid #ddd;text-align:right}"
    "td:first-child,th:first-child{text-align:left}svg text{font:11px system-ui,sans-serif}"
    "figure{margin:1.5rem 0;overflow-x:auto}code{white-space:pre-wrap}"
)


class TypedDocument(msgspec.Struct, Generic[_Result], frozen=True, kw_only=True):
    """`StudyDocument` with the type of the study's own result: what the schema is made from."""

    schema: Literal["emotui-study"] = folders.SCHEMA
    schema_version: Literal[1] = folders.SCHEMA_VERSION
    run: StudyRun
    result: _Result
    report: Report


def write_pages(
    folder: Path,
    document: StudyDocument,
    rows: Rows | None,
    *,
    result_type: type[Any],
    html: bool,
) -> None:
    """Write the files of a finished run, result.json last: its presence says that all are there.

    `rows` are the rows of the CSV; None takes the first table. CacheError where the disk is full.
    """
    tables = document.report.tables
    if rows is None and tables:
        rows = tables[0].columns, tables[0].rows
    if rows is not None:
        _write_csv(folder / "result.csv", *rows)
    folders.write(folder / "result.md", markdown_of(document).encode("utf-8", "replace"))
    if html:
        folders.write(folder / "result.html", html_of(document).encode("utf-8", "replace"))
    schema = msgspec.json.encode(schema_of(result_type), order="sorted")
    folders.write(folder / "result.schema.json", msgspec.json.format(schema, indent=2) + b"\n")
    content = msgspec.json.encode(document, order="sorted")
    folders.write(folder / folders.RESULT_FILE, msgspec.json.format(content, indent=1) + b"\n")


def schema_of(result_type: type[Any]) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of result.json for one type of result."""
    document = TypedDocument[result_type]  # type: ignore[valid-type]
    (schema,), components = msgspec.json.schema_components(
        [document], ref_template="#/$defs/{name}"
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"emotui study document, schema version {folders.SCHEMA_VERSION}",
        **schema,
        "$defs": components,
    }


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """Write row by row into a file beside it, then put it in place."""
    temporary = path.with_name(f"{files.TEMPORARY}{path.name}")
    try:
        with temporary.open("w", encoding="utf-8", errors="replace", newline="") as file:
            temporary.chmod(files.FILE_MODE)
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            for row in rows:
                writer.writerow([_csv_cell(cell) for cell in row])
        temporary.replace(path)
    except OSError as error:
        files.write_failed(path.parent, error)


def _csv_cell(cell: Cell) -> str:
    if isinstance(cell, str):
        words = clean(cell)
        # A spreadsheet would run it.
        return f"'{words}" if words.startswith(_FORMULA) else words
    return "" if cell is None else repr(cell)


def _shown(cell: Cell, column: str = "") -> str:
    if isinstance(cell, float):
        if column in _P_COLUMNS and cell == cell:
            return shown_p(cell)
        return f"{cell:.3f}" if math.isfinite(cell) else ""
    return "" if cell is None else clean(str(cell))


def command_of(run: StudyRun) -> str:
    """Return the command of a run, files by their names alone."""
    study, data = study_named(run.study), run.dataset
    words = ["emotui", "study", run.study]
    bundled = data.name == BundledRows.name
    words.append("bundled" if bundled else data.name)
    words += ["--model", run.model, "--template", run.template.name, "--labels", data.label_set]
    if not bundled:
        words += ["--text-column", data.text_column]
        words += ["--label-column", data.label_column] if data.label_column else []
        for name in data.label_maps:
            words += ["--label-map", name.rsplit(" ", 1)[0]]  # its hash stands behind it
    words += ["--limit", str(run.limit)] if run.limit is not None else []
    words += ["--seed", str(run.seed)]
    defaults = {option.name: option.default for option in study.options}
    for name, value in run.settings.items():
        if value != defaults.get(name):
            words += ["--set", f"{name}={value}"]
    return shlex.join(words)


def facts_of(run: StudyRun) -> list[tuple[str, str]]:
    """Return what a reader must know of a run, name and value."""
    data, study = run.dataset, study_named(run.study)
    counts = ", ".join(f"{label or 'no label'} {n:,}" for label, n in data.labels.items())
    settings = ", ".join(f"{name} {value}" for name, value in run.settings.items() if value)
    return [
        ("question", study.question),
        (
            "model",
            f"{run.model}, {run.layers} layers (from 0), {run.dtype}, {run.device}, attention "
            f"{run.attention}",
        ),
        ("weights", run.fingerprint[:16]),
        *([("note", run.note)] if run.note else []),
        (
            "dataset",
            f"{data.name}: {data.texts:,} of {data.rows:,} rows, digest {data.digest[:16]}",
        ),
        ("texts by label", counts),
        ("which texts", _taken(run)),
        ("prompt", f"{run.template.before}TEXT{run.template.after}"),
        ("answers", f"{data.label_set}, rule {run.answer_rule}"),
        (
            "label tokens",
            "; ".join(
                f"{label} {' '.join(map(str, tokens))}"
                for label, tokens in zip(run.labels, run.label_tokens, strict=True)
            ),
        ),
        *([("SAEs", ", ".join(run.saes))] if run.saes else []),
        *([("probes", ", ".join(run.probes))] if run.probes else []),
        *([("intervals", study.intervals)] if study.intervals else []),
        ("seed", str(run.seed)),
        *([("options", settings)] if settings else []),
        ("packages", ", ".join(f"{name} {version}" for name, version in run.packages.items())),
        ("command", command_of(run)),
        ("begun", f"the time stands in {folders.STUDY_FILE} beside this file"),
    ]


def _taken(run: StudyRun) -> str:
    """Return by which rule texts were taken."""
    most = run.limit if run.limit is not None else study_named(run.study).most_texts
    if most is None:
        return "all"
    asked = "--limit" if run.limit is not None else "the study's own limit"
    labels = ", the same share of every label" if run.dataset.label_column else ""
    return f"at most {most:,} ({asked}), drawn by the hash of seed and text{labels}"


def markdown_of(document: StudyDocument) -> str:
    """Return the result as a Markdown page."""
    return "\n".join(_markdown_lines(document)) + "\n"


def _markdown_lines(document: StudyDocument) -> Iterator[str]:
    report = document.report
    yield f"# {document.run.study}"
    yield ""
    for sentence in report.sentences:
        yield f"{_plain(sentence)}\n"
    for table in (_facts_table(document.run), *report.tables):
        yield f"## {_plain(table.title)}\n"
        yield "| " + " | ".join(_plain(name) for name in table.columns) + " |"
        yield "|" + "---|" * len(table.columns)
        for row in table.rows:
            yield "| " + " | ".join(_cells(table, row)) + " |"
        yield ""


def _cells(table: Table, row: Sequence[Cell]) -> Iterator[str]:
    for name, cell in zip(table.columns, row, strict=False):
        yield _plain(_shown(cell, name))


def _facts_table(run: StudyRun) -> Table:
    return Table("What it is of", ("", ""), tuple(facts_of(run)))


def _plain(words: str) -> str:
    """Return words that mean themselves in Markdown."""
    cleaned = clean(words)
    for character in "\\`*_[]<>|#":
        cleaned = cleaned.replace(character, f"\\{character}")
    return cleaned


def html_of(document: StudyDocument) -> str:
    """Return the result as one page that needs no other file and makes no connection."""
    page = io.StringIO()
    report = document.report
    title = escape(clean(f"{document.run.study}: {document.run.model}"))
    page.write(
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>"
    )
    for sentence in report.sentences:
        page.write(f"<p>{escape(clean(sentence))}</p>")
    for plot in report.plots:
        page.write(_figure(plot.title, svg_of_plot(plot)))
    for heat in report.heats:
        page.write(_figure(heat.title, svg_of_heat(heat)))
    for table in (_facts_table(document.run), *report.tables):
        page.write(_html_table(table))
    page.write("</body></html>\n")
    return page.getvalue()


def _figure(title: str, svg: str) -> str:
    return f"<figure><figcaption>{escape(clean(title))}</figcaption>{svg}</figure>"


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{escape(clean(name))}</th>" for name in table.columns)
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td>{escape(_shown(cell, name))}</td>"
            for name, cell in zip(table.columns, row, strict=False)
        )
        + "</tr>"
        for row in table.rows
    )
    return f"<h2>{escape(clean(table.title))}</h2><table><tr>{head}</tr>{rows}</table>"
