"""Neuronpedia's bulk explanations (`batch-N.jsonl.gz`) into files of labels, torch-free.

Each line is a JSON object of one explanation: `modelId`, `layer` (the id of the SAE, as in
`20-gemmascope-res-16k`), `index`, `description`, `explanationModelName`. The files are taken whole:
never one request for each feature.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import tempfile
import urllib.error
import urllib.request
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import quote

import msgspec

from emotui.cache import files, labels
from emotui.cache.labels import MAX_LABEL, Explanation
from emotui.core.errors import SaeError
from emotui.core.text import clean

ENDPOINT = "https://neuronpedia-datasets.s3.us-east-1.amazonaws.com/v1"
"""Where the batches lie; `EMOTUI_NEURONPEDIA` names another place."""
_MAX_LINE = 1_000_000
_MAX_LINES = 20_000_000
_MAX_BATCHES = 2_000
_MAX_BYTES = 2**30
_SECONDS = 30
_ID = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")
_SITES = (("res", "resid"), ("mlp", "mlp"), ("att", "attn"))


class _Row(msgspec.Struct):
    model: str = msgspec.field(name="modelId")
    layer: str
    index: str | int
    description: str
    explainer: str | None = msgspec.field(name="explanationModelName", default=None)


class Imported(msgspec.Struct, frozen=True):
    """What an import took in."""

    features: dict[str, int]
    """By id of the SAE at Neuronpedia, the features that have an explanation now."""
    rows: int
    skipped: dict[str, int]
    """Why lines were left out, and how many."""


def import_files(
    root: Path, paths: Sequence[Path], *, identity: str = "", today: str | None = None
) -> Imported:
    """Read batches into the cache's labels; `identity` attaches them to the SAEs of a folder.

    Of several explanations of a feature the first counts. A line that is no explanation is counted
    and left out. SaeError for a file that cannot be read or that holds no explanation.
    """
    date = today or datetime.now(UTC).strftime("%Y-%m-%d")
    skipped: Counter[str] = Counter()
    found: dict[str, dict[int, Explanation]] = defaultdict(dict)
    for path in paths:
        before = sum(map(len, found.values()))
        for row in _rows(path, skipped):
            text = _text(row.description)
            index = _index(row.index)
            name = f"{row.model}/{row.layer}"
            if not text or index is None or not _ID.fullmatch(name):
                skipped["without a usable text, index or source"] += 1
                continue
            origin = f"neuronpedia {_text(row.explainer or 'unknown explainer')[:40]} {date}"
            if index in found[name]:
                skipped["a further explanation of the same feature"] += 1
            found[name].setdefault(index, Explanation(text, origin))
        if sum(map(len, found.values())) == before and not skipped:
            raise _nothing(path)
    features = {name: rows for name, rows in found.items() if rows}
    if not features:
        raise _nothing(paths[0])
    try:
        counts = _write(root, features, identity, date)
    except OSError as error:
        files.write_failed(root, error)
    return Imported(counts, sum(map(len, features.values())), dict(skipped))


def _nothing(path: Path) -> SaeError:
    return SaeError(
        f"{clean(path.name)} holds no explanation.",
        why="No line of it is a JSON object with modelId, layer, index and description.",
        todo="Give a batch-N.jsonl.gz of Neuronpedia's `explanations` folder.",
    ).of_input()


def _write(
    root: Path, found: dict[str, dict[int, Explanation]], identity: str, date: str
) -> dict[str, int]:
    meta = {"kind": "explained", "created": date}
    if not identity:
        return {
            name: labels.write(
                labels.explained_path(root, neuronpedia=name),
                (("", index, row) for index, row in rows.items()),
                meta={**meta, "source": f"neuronpedia {name}"},
                keep=True,
            )
            for name, rows in found.items()
        }
    placed = [(name, own_name(name), rows) for name, rows in found.items()]
    labels.write(
        labels.explained_path(root, identity=identity),
        ((place, index, row) for _, place, rows in placed for index, row in rows.items()),
        meta={**meta, "source": ", ".join(f"neuronpedia {name}" for name in found)[:200]},
        keep=True,
    )
    return {name: len(rows) for name, rows in found.items()}


def own_name(name: str) -> str:
    """Return the site and layer of an id of Neuronpedia's, as an SAE names its own: `resid.20`.

    SaeError where the id does not tell. `res-jb` SAEs read the input of their layer.
    """
    layer, _, rest = name.partition("/")[2].partition("-")
    site = next((ours for theirs, ours in _SITES if theirs in rest), None)
    if site is None or not layer.isdecimal():
        raise SaeError(
            f"{clean(name)} does not say which site and layer it is of.",
            why="Its id is not like 20-gemmascope-res-16k.",
            todo="Import it without --sae; it goes by its id then.",
        ).of_input()
    return f"{'resid_pre' if rest == 'res-jb' else site}.{int(layer)}"


def _rows(path: Path, skipped: Counter[str]) -> Iterator[_Row]:
    """Yield the explanations of a file, gzipped or not, line by line."""
    decoder = msgspec.json.Decoder(_Row)
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if zipped else raw
            for number, line in enumerate(_lines(stream, skipped)):
                if number >= _MAX_LINES:
                    skipped["beyond the first 20,000,000 lines"] += 1
                    return
                try:
                    yield decoder.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    skipped["no JSON of an explanation"] += 1
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SaeError(
            f"{clean(path.name)} could not be read.",
            why="It is damaged or cut short.",
            todo="Download it again.",
        ).of_input() from error
    except OSError as error:
        raise SaeError(
            f"{clean(str(path))} could not be read.", why=f"{error.strerror or error}."
        ).of_input() from error


def _lines(stream: BinaryIO, skipped: Counter[str]) -> Iterator[bytes]:
    while line := stream.readline(_MAX_LINE):
        if len(line) == _MAX_LINE and not line.endswith(b"\n"):
            skipped["longer than a megabyte"] += 1
            while (line := stream.readline(_MAX_LINE)) and not line.endswith(b"\n"):
                pass
        elif line.strip():
            yield line


def _text(text: str) -> str:
    return clean(" ".join(text.split()))[:MAX_LABEL].strip()


def _index(value: str | int) -> int | None:
    text = str(value)
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


# Downloading


def download(name: str, folder: Path, *, progress: Callable[[str], None]) -> list[Path]:
    """Fetch all batches of one id (`gemma-2-2b/20-gemmascope-res-16k`) into a folder.

    Batches are asked for one after the other until there is none. SaeError for an id that is
    malformed or unknown, or where the download breaks off.
    """
    if not _ID.fullmatch(name):
        raise SaeError(
            f"{clean(name)!r} is no id of an SAE at Neuronpedia.",
            todo="Ids are like gemma-2-2b/20-gemmascope-res-16k.",
        ).of_input()
    base = os.environ.get("EMOTUI_NEURONPEDIA", ENDPOINT).rstrip("/")
    found: list[Path] = []
    for number in range(_MAX_BATCHES):
        url = f"{base}/{quote(name)}/explanations/batch-{number}.jsonl.gz"
        path = folder / f"batch-{number}.jsonl.gz"
        progress(f"downloading the explanations of {name}: batch {number}")
        try:
            _fetch(url, path)
        except urllib.error.HTTPError as error:
            if error.code in (403, 404) and found:
                break
            if error.code in (403, 404):
                raise SaeError(
                    f"Neuronpedia has no explanations of {clean(name)}.",
                    why=f"{clean(url)} answered {error.code}.",
                    todo="Look the id up at neuronpedia.org; not every SAE has explanations.",
                ).of_input() from error
            raise _broken(name, f"The server answered {error.code}.") from error
        except (OSError, ValueError) as error:
            raise _broken(name, f"{type(error).__name__}: {error}") from error
        found.append(path)
    return found


def _broken(name: str, why: str) -> SaeError:
    return SaeError(
        f"The explanations of {clean(name)} could not be fetched.",
        why=clean(why)[:200],
        todo="Check the network, or download the batch-N.jsonl.gz files yourself and import them.",
    )


def _fetch(url: str, path: Path) -> None:
    if not url.startswith(("https://", "http://")):
        raise ValueError("not a web address")
    with urllib.request.urlopen(url, timeout=_SECONDS) as answer, path.open("wb") as file:
        expected, taken = answer.headers.get("Content-Length"), 0
        while chunk := answer.read(2**16):
            taken += len(chunk)
            if taken > _MAX_BYTES:
                raise ValueError("a batch is larger than a gigabyte")
            file.write(chunk)
        if expected is not None and taken != int(expected):
            raise OSError(f"it broke off at {taken:,} of {int(expected):,} bytes")


@contextlib.contextmanager
def fetched(names: Sequence[str], *, progress: Callable[[str], None]) -> Iterator[list[Path]]:
    """Yield the batches of several ids in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="emotui-labels-") as folder:
        paths = []
        for number, name in enumerate(names):
            place = Path(folder) / str(number)
            place.mkdir()
            paths += download(name, place, progress=progress)
        yield paths
