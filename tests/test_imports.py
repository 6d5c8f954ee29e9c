"""Which process imports what: looked at in fresh interpreters, where deferred imports show."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "transformer_lens", "sae_lens", "tokenizers", "scipy", "pandas")
LIGHT_MODULES = (
    *(
        "emotui",
        "emotui.api",
        "emotui.cli",
        "emotui.app",
        "emotui.commands.inspect",
        "emotui.commands.explore",
    ),
    *("emotui.commands.cache", "emotui.commands.probe", "emotui.commands.export"),
    *("emotui.cache.store", "emotui.cache.prepare", "emotui.core.client", "emotui.core.edits"),
    *("emotui.core.corpus", "emotui.core.export.json", "emotui.core.export.schema"),
    *("emotui.core.protocol", "emotui.ui.screens.explore", "emotui.themes"),
    *("emotui.commands.study", "emotui.commands.studies", "emotui.core.studies.compare"),
)
HEADLESS_MODULES = (
    *(
        "emotui.api",
        "emotui.cli",
        "emotui.commands.inspect",
        "emotui.commands.cache",
        "emotui.commands.export",
    ),
    *("emotui.cache.store", "emotui.core.client", "emotui.core.export.json"),
    "emotui.core.engine.__main__",
)


def imported_by(module: str) -> set[str]:
    """Return the top-level names in `sys.modules` after importing `module` alone."""
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_the_terminal_process_imports_nothing_heavy(module: str) -> None:
    assert not imported_by(module) & set(HEAVY)


@pytest.mark.parametrize("module", HEADLESS_MODULES)
def test_headless_modules_do_not_import_textual(module: str) -> None:
    assert "textual" not in imported_by(module)


def test_the_engine_says_hello_before_torch_is_imported() -> None:
    assert "torch" not in imported_by("emotui.core.engine.__main__")
    assert "torch" not in imported_by("emotui.core.engine.serve")
