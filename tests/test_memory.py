"""What an engine holds after many texts is what it held after the first ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from support_models import tiny_folder

from emotui.core.engine.tokens import TokenReader
from emotui.core.text import template_named

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_five_hundred_texts_leave_no_memory_behind(
    stories: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from memory import BAR, sizes_of  # type: ignore[import-not-found]

    sizes = sizes_of(str(stories), n_texts=500)
    assert len(sizes) == 10
    assert sizes[-1] < sizes[0] * (1 + BAR), [size // 1000 for size in sizes]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize("name", ["stories", "gemma2"])
def test_the_tokenizer_forgets_texts(name: str, stories: Path) -> None:
    """SentencePiece models have no pre-tokenizer: their cache kept each text whole."""
    folder = stories if name == "stories" else tiny_folder("gemma2")
    reader, template = TokenReader.from_folder(folder), template_named("ask")
    template_text = "It was late, and it rained, and text {} was still to be read by someone."

    def read(first: int, last: int) -> None:
        for number in range(first, last):
            reader.read(template_text.format(number), template)

    read(0, 200)
    before = _resident_kilobytes()
    read(200, 1400)
    # With the cache it was 7 kB a text for stories260K: more than 8 MB.
    assert _resident_kilobytes() - before < 2_000


def _resident_kilobytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS in /proc/self/status")
