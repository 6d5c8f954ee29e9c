"""Files from the Hugging Face hub: what is here already, what is fetched, and why it was not.

The local cache is looked at first; where it has what is wanted no connection is made. A revision
is noted in the cache only when all that was wanted of it is there, so that a download that broke
off is never taken for a whole one; files that did arrive are not fetched again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from emotui.cache.fingerprints import hub_commit, hub_folder
from emotui.core.engine.capture import Job
from emotui.core.engine.transfer import Meter, transfer
from emotui.core.errors import EmotuiError, ModelError, SaeError, UsageError
from emotui.core.model_names import ALIASES, near_names
from emotui.core.sizes import in_bytes
from emotui.core.text import clean

Choose = Callable[[Sequence[str]], Sequence[str]]
"""Gets the names of all files of a repository, returns those that are wanted; may raise."""

LICENCE_PAGE = "https://huggingface.co"
_SPARE_BYTES = 256 * 2**20
_XET_SWITCH = "HF_HUB_DISABLE_XET"
DATASETS = ("dair-ai/emotion",)
"""Public datasets whose labels emotui reads, for what may have been meant by an unknown name."""


@dataclass(frozen=True)
class Kind:
    """What a repository holds, as messages call it, and which error tells of it."""

    noun: str
    error: type[EmotuiError] = ModelError
    repo_type: Literal["model", "dataset"] = "model"
    known: Callable[[], Sequence[str]] = tuple
    """Names that may have been meant by an unknown one."""
    otherwise: str = ""
    """What can be done where there is no such repository."""

    def failed(self, what: str, why: str, todo: str) -> EmotuiError:
        """Return the error for a download that did not come to its end."""
        # A dataset is named by an option; what breaks off is no fault of that.
        kind = EmotuiError if self.error is UsageError else self.error
        return kind(clean(what), why=clean(why), todo=clean(todo))

    def refused(self, what: str, why: str, todo: str) -> EmotuiError:
        """Return the error for a repository that cannot be had."""
        return self.error(clean(what), why=clean(why), todo=clean(todo))

    @property
    def page(self) -> str:
        """Where the hub shows such repositories."""
        return LICENCE_PAGE + ("/datasets" if self.repo_type == "dataset" else "")


def _known_models() -> list[str]:
    from emotui.core.sae_directory import known_models

    return [*ALIASES, *ALIASES.values(), *known_models()]


def _known_repositories() -> list[str]:
    from emotui.core.sae_directory import directory

    return list(dict.fromkeys(one.repository for one in directory().values()))


def _known_datasets() -> list[str]:
    here = (one.name.removeprefix("datasets--") for one in hub_folder().glob("datasets--*--*"))
    return [*DATASETS, *(name.replace("--", "/", 1) for name in here)]


MODEL = Kind(
    "model",
    known=_known_models,
    otherwise="`emotui models` lists what is known; a folder is given by its path.",
)
SAES = Kind(
    "SAE repository",
    SaeError,
    known=_known_repositories,
    otherwise="Use --sae none to go on without SAEs, or another release (`emotui models`).",
)
DATASET = Kind(
    "dataset",
    UsageError,
    "dataset",
    known=_known_datasets,
    otherwise="Give OWNER/NAME[:SPLIT] as the hub writes it, or a file.",
)


@dataclass(frozen=True)
class Copies:
    """What is written once more of a download, converted."""

    folder: Path
    share: float
    """Bytes of the copies for each byte of the download."""


def snapshot_here(repo: str, revision: str | None = None) -> Path | None:
    """Return the folder of a model's or SAEs' revision in the local cache, complete or not."""
    commit = hub_commit(repo, revision)
    if commit is None:
        return None
    folder = _home(repo, MODEL) / "snapshots" / commit
    return folder if folder.is_dir() else None


def fetch(
    repo: str,
    *,
    revision: str | None,
    choose: Choose,
    job: Job,
    kind: Kind = MODEL,
    copies: Copies | None = None,
    most_bytes: int | None = None,
) -> Path:
    """Fetch what `choose` picks of a repository and return its snapshot folder.

    Progress tells bytes and time left; room for `copies` is asked for too. The kind's error where
    the repository does not exist, is gated, breaks off, is larger than `most_bytes`, or there is
    no room or connection; Cancelled as soon as the job is.
    """
    from huggingface_hub import HfApi, hf_hub_download

    endpoint = os.environ.get("HF_ENDPOINT") or None
    meter = Meter()
    job.progress(f"asking the hub for {clean(repo)}")
    with _told(repo, revision, kind, meter):
        api = HfApi(endpoint=endpoint)
        ask = api.dataset_info if kind is DATASET else api.model_info
        info = ask(repo, revision=revision, files_metadata=True, timeout=30)
    commit = str(info.sha)
    sizes = {one.rfilename: int(one.size or 0) for one in info.siblings or ()}
    names = list(choose(list(sizes)))
    folder = _home(repo, kind) / "snapshots" / commit
    missing = [name for name in names if not (folder / name).is_file()]
    total = sum(sizes.get(name, 0) for name in missing)
    if most_bytes is not None and total > most_bytes:
        raise kind.refused(
            f"The {kind.noun} {repo} is larger than {in_bytes(most_bytes)}.",
            f"Its files take {in_bytes(total)}.",
            "Give a file with a part of it.",
        )
    copied = int(copies.share * sum(sizes.get(name, 0) for name in names)) if copies else 0
    check_room(repo, {hub_folder(): total, **({copies.folder: copied} if copies else {})}, kind)
    if total:
        further = f", and {in_bytes(copied)} for converted copies" if copied else ""
        job.notice(f"Downloading {clean(repo)}: {in_bytes(total)}{further}.")
    meter.begin(repo, total, job)
    for name in missing:
        job.check()
        get = partial(
            hf_hub_download,
            repo,
            name,
            repo_type=kind.repo_type,
            revision=commit,
            cache_dir=hub_folder(),
            endpoint=endpoint,
        )
        with _told(repo, revision, kind, meter):
            transfer(partial(_with_bars, get), meter=meter, job=job)
        meter.finished((folder / name).stat().st_size)
    _note_revision(_home(repo, kind), revision or "main", commit)
    return folder


def _with_bars(get: Callable[..., str], bars: type[Any]) -> str:
    return get(tqdm_class=bars)


def _home(repo: str, kind: Kind) -> Path:
    return hub_folder() / f"{kind.repo_type}s--{repo.replace('/', '--')}"


def _note_revision(home: Path, revision: str, commit: str) -> None:
    """Write which commit a branch or tag stands for, as huggingface_hub does."""
    if revision == commit:
        return
    reference = home / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    unfinished = reference.with_name(f"{reference.name}.{os.getpid()}.new")
    unfinished.write_text(commit, encoding="ascii")
    unfinished.replace(reference)


def check_room(repo: str, needed: dict[Path, int], kind: Kind) -> None:
    """Raise the kind's error where a disk has no room for what is written in its folders."""
    for folder in needed:
        folder.mkdir(parents=True, exist_ok=True)
    disks = {folder: folder.stat().st_dev for folder in needed}
    for folder, disk in disks.items():
        together = sum(needed[one] for one in needed if disks[one] == disk)
        free = shutil.disk_usage(folder).free
        if together and together + _SPARE_BYTES > free:
            raise kind.failed(
                f"There is no room for {repo}.",
                f"It needs {in_bytes(together)}"
                + (" with the converted copies" if len(needed) > 1 else "")
                + f"; {folder} has {in_bytes(free)} free.",
                "Make room, or choose folders on another disk: HF_HOME for what is downloaded, "
                "--cache-dir for what emotui keeps.",
            )


@contextmanager
def _told(repo: str, revision: str | None, kind: Kind, meter: Meter) -> Iterator[None]:
    """Turn whatever huggingface_hub raises into an error of ours that says what to do."""
    from huggingface_hub import errors as hub

    # Of the HTTP library that this version of huggingface_hub is built on.
    http_error: type[Exception] = getattr(hub, "HTTPError", OSError)
    try:
        yield
    except (EmotuiError, MemoryError):
        raise
    except hub.HFValidationError as error:
        raise _unknown(repo, "It is not a valid Hugging Face id.", kind) from error
    except hub.GatedRepoError as error:
        raise kind.refused(
            f"The {kind.noun} {repo} is gated: its owners ask for an agreement first.",
            f"Tried with {token_source()}.",
            f"Accept the terms at {kind.page}/{repo} with your account, then run "
            "`hf auth login` or set HF_TOKEN.",
        ) from error
    except hub.RevisionNotFoundError as error:
        raise kind.refused(
            f"The {kind.noun} {repo} has no revision {revision or 'main'!r}.",
            "",
            "Check --revision.",
        ).of_input() from error
    except hub.RepositoryNotFoundError as error:
        why = f"The hub has no such {kind.noun}, tried with {token_source()}."
        raise _unknown(repo, why, kind) from error
    except (OSError, http_error) as error:
        raise _broken(repo, error, kind, meter, answered=False) from error
    # hf_xet's errors are RuntimeErrors, and what the library lets through is of any kind.
    except Exception as error:
        raise _broken(repo, error, kind, meter, answered=True) from error


def _broken(
    repo: str, error: Exception, kind: Kind, meter: Meter, *, answered: bool
) -> EmotuiError:
    name = type(error).__name__
    if meter.total:
        by_xet = answered or "xet" in str(error).lower()
        otherwise = f" {_XET_SWITCH}=1 tries plain HTTP." if by_xet else ""
        return kind.failed(
            f"The download of {repo} broke off at {in_bytes(meter.done)} of "
            f"{in_bytes(meter.total)}.",
            f"{name}: {_first_line(error)}",
            f"Run the same command again: files that are whole are not fetched again.{otherwise}",
        )
    why = f"It is not in the local cache, and the Hugging Face hub did not answer ({name})."
    return kind.failed(
        f"The {kind.noun} {repo} could not be fetched.",
        f"{name}: {_first_line(error)}" if answered else why,
        "Check the name, the network and HF_ENDPOINT, or give a local "
        + ("file." if kind is DATASET else "folder."),
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


def unknown_model(name: str, why: str) -> EmotuiError:
    """Return the error for a name that no model has, with the names that are near it."""
    return _unknown(name, why, MODEL)


def _unknown(name: str, why: str, kind: Kind) -> EmotuiError:
    near = near_names(name, kind.known())
    meant = f"Did you mean {', '.join(near)}? " if near else ""
    if not near and kind is MODEL:
        meant = f"Known: {', '.join(ALIASES)}. "
    return kind.refused(
        f"There is no {kind.noun} called {name!r}.", why, f"{meant}{kind.otherwise}"
    ).of_input()
