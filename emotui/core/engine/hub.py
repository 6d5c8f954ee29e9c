"""Files from the Hugging Face hub: what is here already, what is fetched, and why it was not.

The local cache is looked at first; where it has what is wanted no connection is made. A revision
is noted in the cache only when all that was wanted of it is there, so that a download that broke
off is never taken for a whole one; files that did arrive are not fetched again.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from emotui.cache.fingerprints import hub_commit, hub_folder
from emotui.core.engine.capture import Job
from emotui.core.errors import ModelError
from emotui.core.model_names import ALIASES, near_names
from emotui.core.sizes import in_bytes, in_time
from emotui.core.text import clean

Choose = Callable[[Sequence[str]], Sequence[str]]
"""Gets the names of all files of a repository, returns those that are wanted; may raise."""

LICENCE_PAGE = "https://huggingface.co"
_SPARE_BYTES = 256 * 2**20


def _error(what: str, why: str, todo: str) -> ModelError:
    return ModelError(clean(what), why=clean(why), todo=clean(todo))


def snapshot_here(repo: str, revision: str | None = None) -> Path | None:
    """Return the folder of a repository's revision in the local cache, complete or not."""
    commit = hub_commit(repo, revision)
    if commit is None:
        return None
    folder = _home(repo) / "snapshots" / commit
    return folder if folder.is_dir() else None


def fetch(repo: str, *, revision: str | None, choose: Choose, job: Job) -> Path:
    """Fetch what `choose` picks of a repository and return its snapshot folder.

    Progress tells bytes and time left. ModelError where the repository does not exist, is gated,
    breaks off, or there is no room or connection; Cancelled as soon as the job is.
    """
    from huggingface_hub import HfApi, hf_hub_download

    endpoint = os.environ.get("HF_ENDPOINT") or None
    with _told(repo, revision) as meter:
        job.progress(f"asking the hub for {clean(repo)}")
        info = HfApi(endpoint=endpoint).model_info(
            repo, revision=revision, files_metadata=True, timeout=30
        )
        commit = str(info.sha)
        sizes = {one.rfilename: int(one.size or 0) for one in info.siblings or ()}
        names = list(choose(list(sizes)))
        folder = _home(repo) / "snapshots" / commit
        missing = [name for name in names if not (folder / name).is_file()]
        meter.begin(repo, sum(sizes.get(name, 0) for name in missing), job)
        _check_room(repo, meter.total)
        for name in missing:
            job.check()
            hf_hub_download(
                repo,
                name,
                revision=commit,
                cache_dir=hub_folder(),
                endpoint=endpoint,
                tqdm_class=meter.bar_class(),
            )
            meter.finished(sizes.get(name, 0))
    _note_revision(repo, revision or "main", commit)
    return folder


def _home(repo: str) -> Path:
    return hub_folder() / f"models--{repo.replace('/', '--')}"


def _note_revision(repo: str, revision: str, commit: str) -> None:
    """Write which commit a branch or tag stands for, as huggingface_hub does."""
    if revision == commit:
        return
    reference = _home(repo) / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    unfinished = reference.with_name(f"{reference.name}.{os.getpid()}.new")
    unfinished.write_text(commit, encoding="ascii")
    unfinished.replace(reference)


def _check_room(repo: str, needed: int) -> None:
    place = hub_folder()
    place.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(place).free
    if needed and needed + _SPARE_BYTES > free:
        raise _error(
            f"There is no room for {repo}.",
            f"It needs {in_bytes(needed)}; {place} has {in_bytes(free)} free.",
            "Make room, or set HF_HOME to a folder on another disk.",
        )


class Meter:
    """Counts the bytes of a download and reports them, with the time left, to a job."""

    def __init__(self) -> None:
        self.total = 0
        self.done = 0
        self._before = 0
        self._repo = ""
        self._job: Job | None = None
        self._started = 0.0

    def begin(self, repo: str, total: int, job: Job) -> None:
        """Start to count towards `total` bytes."""
        self._repo, self.total, self._job = repo, total, job
        self._started = time.monotonic()
        if total:
            job.notice(f"Downloading {clean(repo)}: {in_bytes(total)}.")
            job.progress(f"downloading {clean(repo)}: {in_bytes(total)}", 0, 100)

    def advance(self, count: int) -> None:
        """Count bytes that arrived; raises Cancelled where the job was cancelled."""
        self.done += count
        if self._job is None:
            return
        self._job.check()
        share = min(self.done / self.total, 1.0) if self.total else 1.0
        seconds = time.monotonic() - self._started
        left = f", {in_time(seconds * (1 - share) / share)} left" if 0 < share < 1 else ""
        what = f"{in_bytes(self.done)} of {in_bytes(self.total)}{left}"
        self._job.progress(f"downloading {clean(self._repo)}: {what}", int(100 * share), 100)

    def finished(self, size: int) -> None:
        """Note that a file is whole, also where it came another way than through the bar."""
        self._before += size
        self.advance(self._before - self.done)

    def bar_class(self) -> type[Any]:
        """Return the class that huggingface_hub makes a bar of for each file, in tqdm's place."""
        meter = self

        class Bar(_Bar):
            def __init__(self, *_arguments: Any, **_named: Any) -> None:
                super().__init__(meter)

        return Bar


class _Bar:
    """The part of tqdm's surface that huggingface_hub uses."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_problem: object) -> None:
        return None

    def update(self, count: float | None = 1) -> None:
        """Count bytes."""
        self._meter.advance(int(count or 0))

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_arguments, **_named: None


@contextmanager
def _told(repo: str, revision: str | None) -> Iterator[Meter]:
    """Turn what huggingface_hub raises into a ModelError that says what to do."""
    from huggingface_hub import errors as hub

    # Of the HTTP library that this version of huggingface_hub is built on.
    http_error: type[Exception] = getattr(hub, "HTTPError", OSError)
    meter = Meter()
    try:
        yield meter
    except hub.HFValidationError as error:
        raise unknown_model(repo, "It is not a valid Hugging Face id.") from error
    except hub.GatedRepoError as error:
        raise _error(
            f"The model {repo} is gated: its owners ask for an agreement first.",
            f"Tried with {token_source()}.",
            f"Accept the terms at {LICENCE_PAGE}/{repo} with your account, then run "
            "`hf auth login` or set HF_TOKEN.",
        ) from error
    except hub.RevisionNotFoundError as error:
        raise _error(
            f"The model {repo} has no revision {revision or 'main'!r}.", "", "Check --revision."
        ).of_input() from error
    except hub.RepositoryNotFoundError as error:
        raise unknown_model(repo, f"The hub has no such model, tried with {token_source()}.") from (
            error
        )
    except (OSError, http_error) as error:
        raise _broken(repo, error, meter) from error


def _broken(repo: str, error: Exception, meter: Meter) -> ModelError:
    kind = type(error).__name__
    if meter.total:
        return _error(
            f"The download of {repo} broke off at {in_bytes(meter.done)} of "
            f"{in_bytes(meter.total)}.",
            f"{kind}: {_first_line(error)}",
            "Run the same command again: files that are whole are not fetched again.",
        )
    return _error(
        f"The model {repo} could not be fetched.",
        f"It is not in the local cache, and the Hugging Face hub did not answer ({kind}).",
        "Check the name, the network and HF_ENDPOINT, or give a local folder.",
    )


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:200] if lines else ""


def token_source() -> str:
    """Say which access token the hub was asked with, never the token itself."""
    from huggingface_hub import constants

    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(variable, "").strip():
            return f"the token in {variable}"
    if Path(constants.HF_TOKEN_PATH).is_file():
        return f"the token in the file {constants.HF_TOKEN_PATH}"
    return f"no token: HF_TOKEN is not set and there is no file {constants.HF_TOKEN_PATH}"


def unknown_model(name: str, why: str) -> ModelError:
    """Return the error for a name that no model has, with the names that are near it."""
    from emotui.core.sae_directory import known_models

    near = near_names(name, [*ALIASES, *ALIASES.values(), *known_models()])
    meant = f"Did you mean {', '.join(near)}?" if near else f"Known: {', '.join(ALIASES)}."
    return _error(
        f"There is no model called {name!r}.",
        why,
        f"{meant} `emotui models` lists what is known; a folder is given by its path.",
    ).of_input()
