"""Fixtures shared by all tests: the data folder, a private cache, a quiet environment."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A shell that starts the tests behind itself has them ignore ctrl+c, and programs inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def _data_dir() -> Path:
    return Path(os.environ.get("EMOTUI_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(autouse=True)
def _quiet_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Keep the user's cache, settings, colours and network out of every test."""
    monkeypatch.setenv("EMOTUI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("EMOTUI_CONFIG_DIR", str(tmp_path_factory.mktemp("settings")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("NO_COLOR", "SSH_CONNECTION", "COLORTERM", "EMOTUI_DEBUG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of test data; skips where it is absent."""
    folder = _data_dir()
    if not folder.is_dir():
        pytest.skip(f"test data is absent: set EMOTUI_DATA (looked in {folder})")
    return folder


@pytest.fixture(scope="session")
def stories(data_dir: Path) -> Path:
    """A real, trained Llama-shaped model of 260 thousand parameters."""
    return data_dir / "stories260K"


@pytest.fixture
def cache_dir(tmp_path: Path) -> Iterator[Path]:
    """An empty cache folder."""
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    yield folder
