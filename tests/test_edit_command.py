"""`emotui inspect --do`: every kind of edit from the command line, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support_command import emotui_bytes_here
from support_edits import random_probe
from support_models import LAYERS, WIDTH, tiny_folder, tiny_model
from support_saes import write_residual_saes

from emotui.cache.recipes import Recipe, save_recipe
from emotui.cache.store import Store

TEXT = "He shouted at me for no reason."
LINES = (
    "steer L1/5 +0.2",
    "knock attn L1-2",
    "knock head L2.1 zero",
    "promote joy L2 +0.1",
    "project out anger L3",
    "modulate +other_agency L2 +0.1 keep effort",
    "modulate -pleasantness L1 +0.1 released keep effort",
    "promote anger L1 +0.1 along row",
    'patch mlp L2 from "Lily was happy."',
    "@calm",
)
PRINTED = (
    "steer L1/5 +0.2 at all",
    "knock attn L1-2 mean at readout",
    "knock head L2.1 zero at readout",
    "promote joy L2 +0.1 at readout",
    "project out anger L3 at readout",
    "modulate +other_agency L2 +0.1 keep effort at readout",
    "modulate -pleasantness L1 +0.1 released keep effort at readout",
    "promote anger L1 +0.1 along row at readout",
    'patch mlp L2 from "Lily was happy." at readout',
    "knock mlp L1 zero at readout",
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A cache with a probe and a recipe, and a folder of SAEs, for the tiny Llama."""
    root = tmp_path_factory.mktemp("bench")
    model = tiny_model("llama")
    with Store.open(root / "cache") as store:
        probe = random_probe(model)
        store.put_probe(probe.id, probe.to_bytes(), probe.file.card)
        recipe = Recipe("calm", model.fingerprint, "tiny", ("knock mlp L1 zero at readout",))
        save_recipe(store.root, recipe)
        other = Recipe("foreign", "0" * 64, "another", recipe.edits)
        save_recipe(store.root, other)
    return root / "cache", write_residual_saes(root / "saes", d_in=WIDTH, layers=LAYERS)


def inspect(
    bench: tuple[Path, Path],
    *lines: str,
    text: str = TEXT,
    selected: bool = False,
    here: bool = True,
) -> subprocess.CompletedProcess[bytes]:
    cache, saes = bench
    arguments = ["inspect", text, "--cache-dir", str(cache)]
    arguments += ["--model", str(tiny_folder("llama")), "--sae", str(saes), "--json"]
    arguments += ["--selected"] if selected else []
    arguments += [word for line in lines for word in ("--do", line)]
    if here:
        return emotui_bytes_here(*arguments, cache_dir=cache)
    command = [sys.executable, "-m", "emotui", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run(command, capture_output=True, timeout=120, check=False, env=environment)


def test_edits_of_all_kinds_stack_from_the_command_line(bench: tuple[Path, Path]) -> None:
    done = inspect(bench, *LINES, here=False)
    assert done.returncode == 0, done.stderr.decode()
    document: dict[str, Any] = json.loads(done.stdout)
    assert tuple(document["edits"]) == PRINTED
    assert len(document["ancestors"]) == len(LINES)
    assert tuple(document["ancestors"][0]["edits"]) == PRINTED[:-1]
    (effect,) = [one for one in document["effects"] if one["metric"] == "kl"]
    random = effect["controls"][1]
    assert random["name"] == "random_directions" and len(random["deltas"]) == 5
    (step,) = [one for one in document["ancestors"] if "released" in "".join(one["edits"][-1:])]
    (note,) = step["intervention"]["notes"]
    assert "as released it is not: cosine with effort" in note


def test_what_was_selected_is_said_so_with_the_controls_of_it(bench: tuple[Path, Path]) -> None:
    line = "clamp L1/5 = 4 at readout"
    plain, selected = (json.loads(inspect(bench, line, selected=s).stdout) for s in (False, True))
    assert plain["id"] != selected["id"] and not plain["intervention"]["selected"]
    names = [[c["name"] for c in one["effects"][0]["controls"]] for one in (plain, selected)]
    assert names[1] == [*names[0], "selection"]
    control = selected["effects"][0]["controls"][-1]
    assert len(control["deltas"]) == 79 and control["candidates"] > 0
    assert control["rank"] == 1 + sum(
        size >= abs(selected["effects"][0]["delta"]) for size in control["deltas"]
    )
    # Without an edit there is nothing that could have been selected.
    assert json.loads(inspect(bench, selected=True).stdout)["id"] == plain["ancestors"][0]["id"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("knock heads L1.2", "'heads'"),
        ("promote joy L2 +nan", "a finite number"),
        ("promote envy L2 +0.1", "'envy'"),
        ("@absent", "There are: calm, foreign"),
        ("@foreign", "another model"),
        ("patch resid L1 from 12345678", "'12345678'"),
    ],
)
def test_what_cannot_be_is_refused_on_one_screen(
    bench: tuple[Path, Path], line: str, words: str
) -> None:
    done = inspect(bench, line)
    assert done.returncode == 2
    assert done.stdout == b""
    assert words in done.stderr.decode() and "Traceback" not in done.stderr.decode()
    assert "The edits stayed as they were." in done.stderr.decode()
