"""Which names of models are known, and which SAEs there are for them: rows, and lines of them."""

from __future__ import annotations

import msgspec

from emotui.core import sae_directory
from emotui.core.errors import ModelError
from emotui.core.model_names import ALIASES, base_name, hub_id_of, near_names
from emotui.core.sae_directory import FORMATS, Release
from emotui.core.text import clean


class ReleaseRow(msgspec.Struct, frozen=True):
    """One release of SAEs, as `emotui models` prints it."""

    name: str
    repository: str
    saes: int
    format: str
    readable: bool
    """Whether emotui reads it."""
    unreadable: str = ""
    """Why it does not."""
    model: str = ""
    """What its SAEs were trained on, as SAELens writes it."""


class ModelRow(msgspec.Struct, frozen=True):
    """One model, as `emotui models` prints it."""

    name: str
    hub_id: str | None
    """None where only SAELens's short name is known."""
    aliases: tuple[str, ...]
    default_sae: str | None
    """What `--sae` is where it is not given; None for no SAEs."""
    releases: tuple[ReleaseRow, ...]
    related: tuple[ReleaseRow, ...] = ()
    """Those that emotui reads of the model it was tuned from, or of models tuned from it."""


class ModelList(msgspec.Struct, frozen=True):
    """What `emotui models --json` prints, but for one release."""

    models: tuple[ModelRow, ...]


def model_rows(query: str = "") -> list[ModelRow]:
    """Return the models whose name, hub id, alias or release holds `query`, by name.

    SaeError where SAELens's directory is missing.
    """
    names = {base_name(name): hub_id_of(name) for name in ALIASES}
    for release in sae_directory.directory().values():
        names.setdefault(base_name(release.model), hub_id_of(release.model))
    rows = [_row(name, names[name]) for name in sorted(names)]
    wanted = query.strip().lower()
    return [row for row in rows if wanted in _words(row)]


def _row(name: str, hub_id: str) -> ModelRow:
    return ModelRow(
        name=name,
        hub_id=hub_id if "/" in hub_id else None,
        aliases=tuple(alias for alias, other in ALIASES.items() if other == hub_id),
        default_sae=sae_directory.default_source(name),
        releases=tuple(map(_release_row, sae_directory.releases_for(name))),
        related=tuple(map(_release_row, sae_directory.related_releases(name))),
    )


def _release_row(release: Release) -> ReleaseRow:
    return ReleaseRow(
        name=release.name,
        repository=release.repository,
        saes=len(release.saes),
        format=FORMATS.get(release.conversion, release.conversion),
        readable=release.readable,
        unreadable=release.unreadable,
        model=release.model,
    )


def _words(row: ModelRow) -> str:
    words = (row.name, row.hub_id or "", *row.aliases, *(one.name for one in row.releases))
    return "\n".join(words).lower()


def model_lines(query: str) -> tuple[list[str], list[ModelRow]]:
    """Return lines on the models that match and their rows; of a release that is named whole, lines
    on its SAEs and ().

    ModelError, with what is near, where nothing matches.
    """
    release = sae_directory.directory().get(query)
    if release is not None:
        return _release_lines(release), []
    rows = matching_rows(query)
    return [line for row in rows for line in _model_lines(row, query)], rows


def matching_rows(query: str) -> list[ModelRow]:
    """Return the models that match; ModelError, with what is near, where none does."""
    rows = model_rows(query)
    if not rows:
        near = near_names(query, [*ALIASES, *sae_directory.known_models()])
        raise ModelError(
            f"No model or SAE release that is known has {clean(query)!r} in its name.",
            why="Other models of the hub can be used too, by their hub id.",
            todo=f"Near it: {', '.join(near)}." if near else "`emotui models` lists all.",
        ).of_input()
    return rows


def summary_of(rows: list[ModelRow]) -> str:
    """Return how many models and releases these are, and what x means."""
    readable = {one.name for row in rows for one in (*row.releases, *row.related) if one.readable}
    return f"{len(rows)} models, {len(readable)} releases that emotui reads (x: it does not)."


def _model_lines(row: ModelRow, query: str) -> list[str]:
    others = [alias for alias in row.aliases if alias != row.name]
    title = "  ".join([row.name, row.hub_id or "", f"({', '.join(others)})" if others else ""])
    lines = [title.rstrip()]
    if row.default_sae:
        lines.append(f"  default: --sae '{row.default_sae}'")
    if query or len(row.releases) <= 3:
        lines += [
            f"  {' ' if one.readable else 'x'} {one.name}  {one.saes} SAEs, {one.format}"
            + (f": {one.unreadable}" if one.unreadable else "")
            for one in row.releases
        ]
    else:
        readable = sum(one.readable for one in row.releases)
        lines.append(f"    {len(row.releases)} releases, {readable} readable")
    if row.related:
        count = f"{len(row.related)} releases" if len(row.related) > 1 else "1 release"
        trained_on = ", ".join(dict.fromkeys(base_name(one.model) for one in row.related))
        lines.append(f"    {count} trained on {trained_on}, which can be used with it")
        if query and not row.releases:
            lines += [f"      {one.name}  {one.saes} SAEs, {one.format}" for one in row.related]
    return lines


def _release_lines(release: Release) -> list[str]:
    lines = [
        f"{release.name}  for {release.model}, from {release.repository}, "
        f"{FORMATS.get(release.conversion, release.conversion)}"
        + (f" (emotui does not read them: {release.unreadable})" if release.unreadable else "")
    ]
    for one in release.saes:
        facts = [f"L0 {one.l0:g}"] if one.l0 else []
        facts += [one.neuronpedia] if one.neuronpedia else []
        lines.append("  ".join([f"  {one.id}", *facts]))
    return lines
