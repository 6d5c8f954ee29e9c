"""Recipes: saved sets of edits, expanded where `@name` stands."""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec
import pytest

from emotui.cache.prepare import private_cache
from emotui.cache.recipes import Recipe, load_recipe, recipes, save_recipe, with_recipes
from emotui.core.errors import CacheError, EditError

FINGERPRINT = "ab" * 32
RECIPE = Recipe("calm", FINGERPRINT, "tiny", ("knock attn L1 mean at readout", "ablate L1/2 at 3"))


def test_a_recipe_stands_for_its_edits_in_their_order(cache_dir: Path) -> None:
    path = save_recipe(cache_dir, RECIPE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert load_recipe(cache_dir, "calm") == RECIPE and recipes(cache_dir) == ["calm"]
    lines = ("promote joy L2 +0.1", "@calm", "project out anger")
    assert with_recipes(lines, cache_dir, FINGERPRINT) == (
        "promote joy L2 +0.1 at readout",
        *RECIPE.edits,
        "project out anger at readout",
    )


def test_a_recipe_of_another_model_is_refused(cache_dir: Path) -> None:
    save_recipe(cache_dir, RECIPE)
    with pytest.raises(EditError, match="another model") as refused:
        with_recipes(["@calm"], cache_dir, "cd" * 32, model="small")
    assert "tiny" in refused.value.why and "small" in refused.value.why, "both are named"


def test_a_private_session_reads_recipes_and_writes_none(cache_dir: Path) -> None:
    save_recipe(cache_dir, RECIPE)
    with private_cache(cache_dir) as folder:
        assert with_recipes(["@calm"], folder, FINGERPRINT) == RECIPE.edits
        with pytest.raises(CacheError, match="private"):
            save_recipe(folder, msgspec.structs.replace(RECIPE, name="other"))
    assert recipes(cache_dir) == ["calm"]


def test_a_recipe_that_is_not_there_is_named_beside_those_that_are(cache_dir: Path) -> None:
    with pytest.raises(EditError, match="None is saved"):
        with_recipes(["@calm"], cache_dir, FINGERPRINT)
    save_recipe(cache_dir, RECIPE)
    with pytest.raises(EditError, match="There are: calm"):
        with_recipes(["@angry"], cache_dir, FINGERPRINT)


@pytest.mark.parametrize("name", ["../calm", "Calm", "", "a b", "x" * 65])
def test_a_name_is_no_path(cache_dir: Path, name: str) -> None:
    with pytest.raises(EditError):
        save_recipe(cache_dir, msgspec.structs.replace(RECIPE, name=name))
    assert recipes(cache_dir) == []


def test_what_cannot_be_read_back_is_not_saved(cache_dir: Path) -> None:
    for edits in ((), ("knock z L1",), ("@calm",)):
        with pytest.raises(EditError):
            save_recipe(cache_dir, msgspec.structs.replace(RECIPE, edits=edits))
    assert recipes(cache_dir) == []


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"name": 3}', b"\xff\xfe", b"{" * 9999])
def test_a_damaged_recipe_says_so(cache_dir: Path, content: bytes) -> None:
    save_recipe(cache_dir, RECIPE).write_bytes(content)
    with pytest.raises(CacheError, match="cannot be read"):
        with_recipes(["@calm"], cache_dir, FINGERPRINT)


def test_an_edit_that_a_recipe_should_not_hold_is_refused(cache_dir: Path) -> None:
    path = save_recipe(cache_dir, RECIPE)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(RECIPE, edits=("@calm",))))
    with pytest.raises(EditError):
        with_recipes(["@calm"], cache_dir, FINGERPRINT)
