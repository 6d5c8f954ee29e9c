"""Recipes: sets of edits saved under a name, one JSON file each in the cache folder."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from emotui.cache import files
from emotui.core.edits import STAYED, parse_edit, recipe_named
from emotui.core.errors import CacheError, EditError
from emotui.core.records import Trace
from emotui.core.text import clean

_FOLDER = "recipes"
MAX_EDITS = 1000


class Recipe(msgspec.Struct, frozen=True):
    """A saved set of edits of one model."""

    name: str
    fingerprint: str
    """Of the model the edits were made on."""
    model: str
    edits: tuple[str, ...]
    """In their printed form, in the order they were made."""


def save_recipe(root: Path, recipe: Recipe) -> Path:
    """Write a recipe into the cache folder, over one of its name; return its path.

    EditError for a name or an edit that cannot be read back; CacheError where it cannot be
    written, in a private session for one: it reads the recipes of the cache and writes none.
    """
    if recipe_named(f"@{recipe.name}") != recipe.name or not recipe.edits:
        raise EditError("A recipe needs at least one edit.", todo="Make an edit first.")
    for line in recipe.edits:
        parse_edit(line)
    path = _path(root, recipe.name)
    if path.parent.is_symlink():
        raise CacheError(
            "The recipe was not saved.",
            why="This session is private: nothing of it is kept.",
            todo="Open emotui without --private to save recipes.",
        )
    try:
        files.make_folder(path.parent)
        files.write_whole(path, msgspec.json.encode(recipe, order="sorted"))
    except OSError as error:
        files.write_failed(root, error)
    return path


def recipe_of(trace: Trace, name: str) -> Recipe:
    """Return the edits in force in a trace as a recipe; EditError where there are none."""
    if not trace.edits:
        raise EditError("No edit is in force, so there is nothing to save.", todo=STAYED)
    return Recipe(name.removeprefix("@"), trace.run.fingerprint, trace.run.model, trace.edits)


def recipes(root: Path) -> list[str]:
    """Return the names of the recipes there are, sorted."""
    return sorted(path.stem for path in (root / _FOLDER).glob("*.json"))


def recipes_held(root: Path) -> dict[str, str]:
    """Return the recipes that can be read, by name, each with its model and edits in words."""
    held: dict[str, str] = {}
    for name in recipes(root):
        with contextlib.suppress(CacheError, EditError):
            recipe = load_recipe(root, name)
            held[name] = f"{recipe.model}: {'; '.join(recipe.edits)}"
    return held


def load_recipe(root: Path, name: str) -> Recipe:
    """Return a recipe; EditError names those there are, CacheError where its file is damaged."""
    path = _path(root, name)
    try:
        data = path.read_bytes()
    except OSError as error:
        there = recipes(root)
        raise EditError(
            f"There is no recipe called {clean(name)!r}.",
            why=f"There are: {', '.join(there)}." if there else "None is saved in this cache.",
            todo=STAYED,
        ) from error
    try:
        recipe = msgspec.json.decode(data, type=Recipe)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CacheError(
            f"The recipe {name} cannot be read.",
            why=f"{clean(str(error))}.",
            todo=f"Remove {path}, or save the recipe again.",
        ) from error
    if len(recipe.edits) > MAX_EDITS:
        raise CacheError(
            f"The recipe {name} cannot be read.", why=f"It holds over {MAX_EDITS:,} edits."
        )
    return recipe


def remove_recipe(root: Path, name: str) -> None:
    """Remove a recipe. Raises EditError where there is none, CacheError where it must stay."""
    load_recipe(root, name)
    path = _path(root, name)
    try:
        path.unlink()
    except OSError as error:
        files.write_failed(root, error)


def with_recipes(
    lines: Sequence[str], root: Path, fingerprint: str, *, model: str = ""
) -> tuple[str, ...]:
    """Return edits in their printed form, with the edits of a recipe in the place of `@name`.

    `model` is the name of the model in use, for what is said of a recipe of another. EditError
    for a line that cannot be understood, and for a recipe of another model.
    """
    expanded: list[str] = []
    for line in lines:
        name = recipe_named(line)
        if name is None:
            expanded.append(str(parse_edit(line)))
            continue
        recipe = load_recipe(root, name)
        if recipe.fingerprint != fingerprint:
            raise EditError(
                f"The recipe {name} is of another model.",
                why=f"It was made on {clean(recipe.model)}, whose weights differ from those in "
                f"use{f' ({clean(model)})' if model else ''}.",
                todo=STAYED,
            )
        expanded += [str(parse_edit(edit)) for edit in recipe.edits]
    return tuple(expanded)


def _path(root: Path, name: str) -> Path:
    return root / _FOLDER / f"{name}.json"
