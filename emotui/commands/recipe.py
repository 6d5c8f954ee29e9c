"""`emotui recipe`: sets of edits under a name, used as `@name`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from emotui.commands.common import cache_for, say
from emotui.core.text import clean

app = typer.Typer(
    help="Save the edits of a trace as a recipe (save), list recipes, show or remove one.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

CacheDir = Annotated[
    Path | None,
    typer.Option("--cache-dir", help="Where recipes are kept.", envvar="EMOTUI_CACHE_DIR"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Name = Annotated[str, typer.Argument(help="The name, without @.")]


@app.command()
def save(
    name: Name,
    trace: Annotated[str, typer.Argument(help="The id of a cached trace, or its beginning.")],
    cache_dir: CacheDir = None,
) -> None:
    """Save the edits of a trace as a recipe, over one of its name."""
    from emotui.cache.recipes import recipe_of, save_recipe
    from emotui.cache.store import Store

    with cache_for(cache_dir, private=False) as root, Store.open(root) as store:
        recipe = recipe_of(store.get_trace(trace), name)
        save_recipe(root, recipe)
    count = len(recipe.edits)
    say(f"Saved @{recipe.name}: {count} {'edit' if count == 1 else 'edits'}.")


@app.command("list")
def list_recipes(as_json: AsJson = False, cache_dir: CacheDir = None) -> None:
    """List the recipes there are, with their models and edits."""
    from emotui.cache.recipes import load_recipe, recipes

    with cache_for(cache_dir, private=False) as root:
        found = [load_recipe(root, name) for name in recipes(root)]
    if as_json:
        _print_json(found)
        return
    for recipe in found:
        typer.echo(f"@{recipe.name}  {clean(recipe.model)}  {clean('; '.join(recipe.edits))}")
    if not found:
        say("No recipe is saved. `emotui recipe save NAME TRACE` saves one.")


@app.command()
def show(name: Name, as_json: AsJson = False, cache_dir: CacheDir = None) -> None:
    """Print the edits of a recipe, one a line."""
    from emotui.cache.recipes import load_recipe

    with cache_for(cache_dir, private=False) as root:
        recipe = load_recipe(root, name.removeprefix("@"))
    if as_json:
        _print_json(recipe)
        return
    say(f"@{recipe.name}, made on {recipe.model} ({recipe.fingerprint[:16]})")
    for edit in recipe.edits:
        typer.echo(clean(edit))


@app.command()
def remove(name: Name, cache_dir: CacheDir = None) -> None:
    """Remove a recipe."""
    from emotui.cache.recipes import remove_recipe

    with cache_for(cache_dir, private=False) as root:
        remove_recipe(root, name.removeprefix("@"))
    say(f"Removed @{name.removeprefix('@')}.")


def _print_json(value: Any) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(value, order="sorted") + b"\n")
