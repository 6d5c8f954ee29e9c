"""`emotui study`: run a study on a dataset, list, show, resume and compare results."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from typer.core import TyperGroup

from emotui.commands.common import cache_for, say
from emotui.core.emotions import DEFAULT_LABEL_SET
from emotui.core.errors import UsageError
from emotui.core.protocol import ModelSpec, StudyRequest
from emotui.core.studies.table import STUDIES, Study, settings_of, study_named
from emotui.core.text import clean, template_named

if TYPE_CHECKING:
    from emotui.core.studies.compare import Comparison

DEFAULT_TEMPLATE = "tak1"
"""Studies ask as Tak et al. do; the explorer's own prompt is `ask`."""
EVERY_TEMPLATE = ("ask", "tak1", "tak2", "tak3", "tak4")
"""What `--template all` means: each is a run of its own."""


class _RunIsTheDefault(TyperGroup):
    """`emotui study NAME DATA` is `emotui study run NAME DATA`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunIsTheDefault,
    help="Run a study: emotui study NAME DATA. Also list, show, resume and compare.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

CacheDir = Annotated[
    Path | None,
    typer.Option("--cache-dir", help="Where results are kept.", envvar="EMOTUI_CACHE_DIR"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Html = Annotated[bool, typer.Option("--html", help="Also write a page with plots.")]


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="A study; `emotui study list` shows them.")],
    data: Annotated[str, typer.Argument(help="A TSV, CSV or JSONL file, or `bundled`.")],
    model: Annotated[
        str | None, typer.Option("--model", help="One or more, with commas between them.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or auto.")] = "auto",
    sae: Annotated[
        list[str] | None, typer.Option("--sae", help="A folder, RELEASE[:ID], or none.")
    ] = None,
    template: Annotated[
        str, typer.Option("--template", help="The prompt; with commas, or all.")
    ] = DEFAULT_TEMPLATE,
    labels: Annotated[
        str, typer.Option("--labels", help="The set of emotion labels.")
    ] = DEFAULT_LABEL_SET,
    text_column: Annotated[
        str | None, typer.Option(help="The column of texts; a number where there is no header.")
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="The column of labels.")] = None,
    label_map: Annotated[
        list[Path] | None,
        typer.Option("--label-map", help="What the values of that column mean (JSON, or lines)."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Most texts, drawn by label.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="An option of the study: NAME=VALUE.")
    ] = None,
    shots: Annotated[str | None, typer.Option(help="As --set shots=0,1,3.")] = None,
    span: Annotated[str | None, typer.Option(help="As --set span=1,3,5.")] = None,
    evaluate: Annotated[
        list[Path] | None, typer.Option("--eval", help="Further datasets, as --set eval=...")
    ] = None,
    items: Annotated[Path | None, typer.Option(help="As --set items=FILE.")] = None,
    save: Annotated[str | None, typer.Option(help="As --set save=NAME.")] = None,
    mode: Annotated[str | None, typer.Option(help="As --set mode=score,generate.")] = None,
    terms: Annotated[Path | None, typer.Option(help="As --set terms=FILE.")] = None,
    do: Annotated[
        list[str] | None, typer.Option("--do", help="An edit in force, as --set edit=EDIT.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of the results.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would take.")
    ] = False,
    html: Html = False,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    offline: Annotated[bool, typer.Option("--offline", help="Make no connection.")] = False,
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """Run a study on a dataset, once for each model and template."""
    from emotui.cache.demo import demo_saes, demo_spec
    from emotui.commands.models import sae_sources
    from emotui.commands.studies import Plan, do_runs

    study = study_named(name)
    templates = EVERY_TEMPLATE if template == "all" else tuple(template.split(","))
    for one in templates:
        template_named(one)
    given = _settings(
        study,
        settings or (),
        shots=shots,
        span=span,
        eval=evaluate,
        items=items,
        save=save,
        mode=mode,
        terms=terms,
        edit="; ".join(do) if do else None,
    )
    with cache_for(cache_dir, private=False, demo=model is None) as root:
        requests = []
        for one_model in model.split(",") if model is not None else [None]:
            if one_model is None:
                spec = demo_spec(dtype=dtype, device=device)
                sources = sae or demo_saes()
            else:
                spec = ModelSpec(one_model, revision, dtype, device, offline)
                sources = sae or ()
            saes: tuple[str, ...] = ()
            if study.saes != "unused":
                saes = sae_sources(spec.model, sources, offline=offline, cache_dir=cache_dir)
            requests += [
                StudyRequest(
                    spec=spec,
                    cache_dir=str(root),
                    study=study.name,
                    out="",
                    data=data if data == "bundled" else _absolute(Path(data)),
                    template=one,
                    label_set=labels,
                    text_column=text_column,
                    label_column=label_column,
                    label_maps=tuple(_absolute(path) for path in label_map or ()),
                    saes=saes,
                    limit=limit,
                    settings=given,
                    seed=seed,
                    html=html,
                )
                for one in templates
            ]
        folders = _folders(requests, out, root)
        do_runs(
            [
                msgspec.structs.replace(request, out=str(folder))
                for request, folder in zip(requests, folders, strict=True)
            ],
            Plan(root=root, dry_run=dry_run, as_json=as_json),
        )


@app.command("list")
def list_studies(as_json: AsJson = False, cache_dir: CacheDir = None) -> None:
    """List the studies there are, and the results in the cache, newest first."""
    from emotui.commands.studies import print_json
    from emotui.core.studies.common.saved import FOLDER, ListedStudies, ListedStudy, saved_runs

    with cache_for(cache_dir, private=False) as root:
        saved = saved_runs(root / FOLDER)
    if as_json:
        studies = tuple(
            ListedStudy(
                name=study.name,
                question=study.question,
                paper=study.paper,
                needs_labels=study.needs_labels,
                options={option.name: option.help for option in study.options},
            )
            for study in STUDIES
        )
        print_json(ListedStudies(studies, tuple(saved)))
        return
    for study in STUDIES:
        labels = "" if study.needs_labels else " (no labels needed)"
        paper = f" [{study.paper}]" if study.paper else ""
        typer.echo(f"{study.name:<12} {study.question}{paper}{labels}")
        for option in study.options:
            default = f" (default {option.default})" if option.default else ""
            typer.echo(f"{'':<14} --set {option.name}=...  {option.help}{default}")
    for one in saved:
        state = "" if one.finished else "  not finished: emotui study resume"
        typer.echo(
            clean(f"{one.created}  {one.study:<12} {one.model} {one.template} {one.data}{state}")
        )
        typer.echo(clean(f"    {one.folder}"))


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="The folder of a result.")], as_json: AsJson = False
) -> None:
    """Print a result: sentences, tables and what it is of."""
    from emotui.commands.studies import show_result

    show_result(folder, as_json=as_json)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="The folder of a run.")],
    html: Html = False,
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """Go on with a run that was interrupted, with the options it was begun with."""
    from emotui.commands.studies import Plan, do_runs
    from emotui.core.studies.common.folder import read_study

    request = read_study(folder).request
    with cache_for(cache_dir, private=False) as root:
        request = msgspec.structs.replace(
            request, out=_absolute(folder), cache_dir=str(root), html=request.html or html
        )
        do_runs([request], Plan(root=root, dry_run=False, as_json=as_json))


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders of results of one study.")],
    as_json: AsJson = False,
) -> None:
    """Set results side by side, by layer and by fraction of depth."""
    from emotui.commands.studies import finished, print_json
    from emotui.core.studies.compare import compare as set_side_by_side

    documents = [finished(folder) for folder in folders]
    studies = sorted({document.run.study for document in documents})
    if len(studies) > 1:
        raise UsageError(
            "Only results of one study can be compared.", why=f"These are: {', '.join(studies)}."
        )
    try:
        comparison = set_side_by_side(documents)
    except ValueError:
        raise UsageError(
            f"Results of {studies[0]} hold nothing that goes by layer.",
            todo="Read them one by one with `emotui study show`.",
        ) from None
    if as_json:
        print_json(comparison)
        return
    for number, name in enumerate(comparison.results, start=1):
        typer.echo(f"{number}: {clean(name)}")
    _print_curves(comparison)
    say("-1 is the embedding; depth 0 is layer 0, depth 1 the last layer.")


def _print_curves(comparison: Comparison) -> None:
    for curve in comparison.curves:
        typer.echo("\n" + clean(f"{curve.plot}: {curve.line}"))
        _print_columns("layer", curve.layers, curve.by_layer)
        _print_columns("depth", curve.depths, curve.by_depth)


def _print_columns(
    name: str, places: tuple[float, ...], values: tuple[tuple[float | None, ...], ...]
) -> None:
    """Print one column a result, headed by its number."""
    typer.echo(f"{name:>6}" + "".join(f"{n:>9}" for n in range(1, len(values[0]) + 1)))
    for place, row in zip(places, values, strict=True):
        cells = "".join(" " * 9 if value is None else f"{value:>9.3f}" for value in row)
        typer.echo(f"{place:>6g}{cells}")


def _absolute(path: Path) -> str:
    """The engine may run elsewhere."""
    return str(path.expanduser().absolute())


def _settings(study: Study, given: list[str] | tuple[()], **named: Any) -> dict[str, str]:
    settings: dict[str, str] = {}
    for one in given:
        name, sign, value = one.partition("=")
        if not sign:
            raise UsageError(f"--set {clean(one)!r} has no =.", todo="Give --set NAME=VALUE.")
        settings[name.strip()] = value.strip()
    for name, value in named.items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        settings[name] = ",".join(_absolute(v) if isinstance(v, Path) else str(v) for v in values)
    settings_of(study, settings)
    return settings


def _folders(requests: list[StudyRequest], out: Path | None, root: Path) -> list[Path]:
    """Return the folder of each run: --out itself for one, folders in it for several."""
    from emotui.core.studies.common.saved import FOLDER

    if out is not None and len(requests) == 1:
        return [Path(_absolute(out))]
    if out is not None:
        names = [f"{_short(r.spec.model)}-{r.template}" for r in requests]
        doubled = {name for name in names if names.count(name) > 1}
        return [
            Path(_absolute(out)) / (f"{name}-{_hash(r)}" if name in doubled else name)
            for name, r in zip(names, requests, strict=True)
        ]
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return [root / FOLDER / f"{r.study}-{now}-{_hash(r)}" for r in requests]


def _short(model: str) -> str:
    name = model.rstrip("/").rsplit("/", 1)[-1]
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name) or "model"


def _hash(request: StudyRequest) -> str:
    return hashlib.sha256(msgspec.json.encode(request, order="sorted")).hexdigest()[:8]
