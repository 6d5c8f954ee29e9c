"""The engine on two pretend accelerators (see `support_cards`), in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent


def _on_cards(*names: str, of: str) -> None:
    """Run `on_cards_*.py` files in another process: the backend cannot be taken back in this one.

    With a fixed seed for hashes: of the devices of a map accelerate takes the first of a set for
    its main one. Of numbers, as CUDA's are, that is the lowest; with this seed it is `card:0`.
    """
    files = [str(FOLDER / f"on_cards_{name}.py") for name in names]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", of, *files],
        capture_output=True,
        text=True,
        cwd=FOLDER.parent,
        env={**os.environ, "PYTHONHASHSEED": "2", "PYTEST_ADDOPTS": ""},
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"


def test_the_engine_on_pretend_cards() -> None:
    _on_cards("device", "placing", "engine", of="not soak")


@pytest.mark.soak
def test_all_of_the_engine_and_every_study_on_pretend_cards() -> None:
    _on_cards("engine", "studies", of="soak")
