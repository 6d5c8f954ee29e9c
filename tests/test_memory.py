"""What an engine holds after many texts is what it held after the first ones."""

from __future__ import annotations

import gc
import importlib
import os
import sys
import weakref
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import msgspec
import pytest
import torch
from support_models import tiny_folder

from emotui.cache.demo import demo_saes, demo_spec, install_demo
from emotui.cache.prepare import prepare
from emotui.cache.store import Store
from emotui.core.engine import operations
from emotui.core.engine.capture import QuietJob
from emotui.core.engine.tokens import TokenReader
from emotui.core.protocol import GenerationSpec, InspectRequest
from emotui.core.text import template_named

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_five_hundred_texts_leave_no_memory_behind(
    stories: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    memory = importlib.import_module("memory")
    sizes = memory.sizes_of(str(stories), n_texts=500)
    assert len(sizes) == 10
    assert sizes[-1] < sizes[0] * (1 + memory.BAR), [size // 1000 for size in sizes]


def _answers(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InspectRequest]:
    """Have the demo's engine answer one text after another, in this process.

    All with SAEs, probes and attributions; one in ten with an edit, one in ten continued.
    """
    monkeypatch.setattr(os, "fsync", lambda _: None)  # half of the time, and nothing to remember
    install_demo(cache_dir)
    plain = InspectRequest(
        demo_spec(dtype="auto", device="auto"), "", str(cache_dir), saes=tuple(demo_saes())
    )
    session, job = operations.Session(), QuietJob()
    with Store.open(cache_dir) as store:
        for number in range(100, 1000):
            text = f"Text {number}: it was late{', and it rained' * (number % 5)}."
            request = msgspec.structs.replace(plain, text=text)
            if number % 10 == 0:
                edits = (f"ablate L3/{number} at all",)
                request = msgspec.structs.replace(request, edits=edits)
            elif number % 10 == 5:
                request = msgspec.structs.replace(request, generation=GenerationSpec(4))
            request = prepare(request, store).request
            operations.handle(request, job, session)
            yield request
    session.close_store()


def _alive() -> tuple[list[tuple[int, ...]], int, int]:
    """Return the shapes of all tensors, how many objects gc knows, and Python's memory blocks.

    Weak references do not count: SQLite's connections sweep theirs every 200 cursors.
    """
    gc.collect()
    objects = [one for one in gc.get_objects() if not issubclass(type(one), weakref.ref)]
    shapes = sorted(tuple(one.shape) for one in objects if type(one) is torch.Tensor)
    return shapes, len(objects), sys.getallocatedblocks()


@pytest.mark.soak
def test_sixty_texts_leave_no_tensor_and_no_object_behind(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = _answers(cache_dir, monkeypatch)
    texts: set[str] = set()
    found = []
    for _ in range(3):
        for request in islice(answers, 20):
            assert request.probes
            texts.add(request.text)
        found.append(_alive())
    assert len(texts) == 60
    first, second, third = found
    assert first[0] == second[0] == third[0]
    # What is imported and made once comes with the first texts.
    assert third[1] - second[1] < 10  # one object a text would be 20
    assert third[2] - second[2] < 1000  # a trace has thousands of blocks


def test_no_text_interns_a_string(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a Path are interned: by names of files, Python's table grew until it doubled."""
    answers = _answers(cache_dir, monkeypatch)
    list(islice(answers, 10))
    new: list[str] = []
    intern = sys.intern

    def noted(name: str) -> str:
        copy = "".join(list(name))
        known = intern(copy)
        if known is copy and len(name) > 1:  # it was not in the table
            new.append(name)
        return known

    with monkeypatch.context() as patch:
        patch.setattr(sys, "intern", noted)
        Path("/a-name/that-was-never/interned")
        assert len(new) == 3
        new.clear()
        list(islice(answers, 10))
    assert new == []


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
