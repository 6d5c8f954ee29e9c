"""The bundled demo: where its model and SAEs are, and its example trace and probes in the cache.

`emotui/demo/` holds `emotui-demo/` (the model), `saes/` (a folder for each layer), `example.json`
(text and edits), and `cache/` with the example's traces and the probes, laid out as the cache is.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

import emotui
from emotui.cache import files
from emotui.core.errors import UsageError
from emotui.core.protocol import InspectRequest, ModelSpec

DEMO_FOLDER = Path(emotui.__file__).parent / "demo"
DEMO_MODEL = DEMO_FOLDER / "emotui-demo"


class Example(msgspec.Struct, frozen=True):
    """The text that the explorer opens on when it is given nothing."""

    text: str
    edits: tuple[str, ...]


def has_demo() -> bool:
    """Return whether this build carries a demo model."""
    return (DEMO_MODEL / "config.json").is_file()


def demo_spec(*, dtype: str = "auto", device: str = "auto") -> ModelSpec:
    """Return the bundled model; UsageError where this build has none."""
    if not has_demo():
        raise UsageError(
            "No model was named.",
            why="This build of emotui carries no demo model.",
            todo="Name one: emotui --model FOLDER_OR_HUB_ID.",
        )
    return ModelSpec(model=str(DEMO_MODEL), dtype=dtype, device=device, offline=True)


def is_demo(spec: ModelSpec) -> bool:
    """Return whether a spec is that of the bundled model."""
    return spec.model == str(DEMO_MODEL)


def demo_saes() -> tuple[str, ...]:
    """Return the source of the bundled SAEs."""
    return (str(DEMO_FOLDER / "saes"),)


def example() -> Example:
    """Return the bundled example."""
    return msgspec.json.decode((DEMO_FOLDER / "example.json").read_bytes(), type=Example)


def example_request(request: InspectRequest) -> InspectRequest:
    """Return a request of the demo model turned into that of the bundled example."""
    shown = example()
    return msgspec.structs.replace(request, text=shown.text, edits=shown.edits, selected=True)


def is_bundled(probe_id: str, folder: Path = DEMO_FOLDER) -> bool:
    """Return whether a probe is one that comes with emotui."""
    return any((folder / "cache" / "probes").glob(f"*/{probe_id}.safetensors"))


def install_demo(root: Path, folder: Path = DEMO_FOLDER) -> int:
    """Copy the example's traces and the demo's probes into the cache where they are missing.

    Returns how many files were copied; fewer where the folder cannot be written. To be called
    before the cache is opened, which then finds them.
    """
    copied = 0
    source = folder / "cache"
    for path in sorted(source.rglob("*.safetensors")):
        target = root / path.relative_to(source)
        if target.exists():
            continue
        try:
            files.write_whole(target, path.read_bytes())
        except OSError:
            break  # what needs the cache will say why it cannot be written
        copied += 1
    return copied
