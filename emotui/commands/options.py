"""Options that commands share, in groups: a command takes a group as one parameter."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import msgspec
import typer

from emotui.core.emotions import DEFAULT_LABEL_SET
from emotui.core.errors import UsageError
from emotui.core.protocol import InspectRequest, ModelSpec
from emotui.core.sizes import bytes_of
from emotui.core.text import DEFAULT_TEMPLATE, clean

Text = Annotated[str | None, typer.Argument(help="The text; - reads standard input.")]
Edits = Annotated[
    list[str] | None, typer.Option("--do", help="An edit, as 'ablate L5/12 at all', or @name.")
]
AllSites = Annotated[
    bool, typer.Option("--all-sites", help="Keep attention and MLP outputs of every token.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Out = Annotated[Path | None, typer.Option("-o", "--out", help="Write to a file.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite that file.")]
CacheDir = Annotated[
    Path | None,
    typer.Option("--cache-dir", help="Where traces are kept.", envvar="EMOTUI_CACHE_DIR"),
]


def choice(option: str, value: str, allowed: Sequence[str]) -> str:
    """Return the value of an option; UsageError where it is none of those allowed."""
    if value not in allowed:
        raise UsageError(
            f"{option} cannot be {clean(value)!r}.", todo=f"Use {' or '.join(allowed)}."
        )
    return value


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and how it is to be run."""

    model: Annotated[
        str | None, typer.Option("--model", help="A local folder, a hub id or an alias.")
    ] = None
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit of a hub model.")
    ] = None
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps or auto.")] = "auto"
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, int8, nf4 or auto.")] = "auto"
    device_map: Annotated[
        str | None, typer.Option("--device-map", help="auto: the layers spread over all GPUs.")
    ] = None
    offline: Annotated[bool, typer.Option("--offline", help="Make no connection.")] = False

    def spec(self) -> ModelSpec:
        """Return the model that was named, else the bundled one.

        Raises UsageError for a device map that does not exist, or where no model is bundled.
        """
        from emotui.cache.demo import demo_spec

        if self.model is None:
            spec = demo_spec(dtype=self.dtype, device=self.device)
        else:
            spec = ModelSpec(
                model=self.model,
                revision=self.revision,
                dtype=self.dtype,
                device=self.device,
                offline=self.offline,
            )
        if self.device_map is not None:
            device_map = choice("--device-map", self.device_map, ("auto",))
            spec = msgspec.structs.replace(spec, device_map=device_map)
        return spec


@dataclass(frozen=True, kw_only=True)
class SaeOptions:
    """Which SAEs, and how much of them is held at a time."""

    sae: Annotated[
        list[str] | None,
        typer.Option("--sae", help="A folder, a params.npz, RELEASE[:ID], or none."),
    ] = None
    sae_memory: Annotated[
        str | None,
        typer.Option("--sae-memory", help="SAE weights held at a time, as 8GiB; what is free."),
    ] = None


NO_SAES = SaeOptions(sae=["none"])


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """What stands around the text, and the labels that are answered with."""

    template: Annotated[str, typer.Option("--template", help="The prompt around the text.")] = (
        DEFAULT_TEMPLATE
    )
    labels: Annotated[str, typer.Option("--labels", help="The set of emotion labels.")] = (
        DEFAULT_LABEL_SET
    )


@dataclass(frozen=True, kw_only=True)
class ReadOptions(PromptOptions):
    """What stands around the text, the labels, and the probes that read it."""

    probe: Annotated[
        list[str] | None,
        typer.Option(
            "--probe", help="A probe of `emotui probe list` to read with; one of each kind."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class KeepOptions:
    """Where results are kept."""

    private: Annotated[
        bool, typer.Option("--private", help="Keep nothing of this session on the disk.")
    ] = False
    cache_dir: CacheDir = None


def chosen_of(prompt: PromptOptions) -> tuple[str, ...]:
    """Return the probes that were named."""
    return tuple(prompt.probe or ()) if isinstance(prompt, ReadOptions) else ()


def request_of(
    text: str | None,
    model: ModelOptions,
    saes: SaeOptions,
    prompt: PromptOptions,
    *,
    cache_dir: Path | None,
) -> InspectRequest:
    """Return the request that options ask for; its cache folder is not filled in yet.

    Without a model the bundled one and its SAEs are meant. Raises UsageError for what is unknown.
    """
    from emotui.cache.demo import demo_saes
    from emotui.commands.models import sae_sources

    spec = model.spec()
    if saes.sae_memory is not None:
        spec = msgspec.structs.replace(spec, sae_memory=bytes_of(saes.sae_memory))
    wanted = saes.sae or (demo_saes() if model.model is None else ())
    return InspectRequest(
        spec=spec,
        text=text or "",
        cache_dir="",
        template=prompt.template,
        label_set=prompt.labels,
        chosen=chosen_of(prompt),
        saes=sae_sources(spec.model, wanted, offline=model.offline, cache_dir=cache_dir),
    )


def in_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command for typer whose parameters of a group's type are the group's options."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type[Any]] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if not (isinstance(kind, type) and is_dataclass(kind)):
            parameters.append(
                parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=kind)
            )
            continue
        groups[name] = kind
        options = get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(
                option.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if option.default is MISSING else option.default,
                annotation=options[option.name],
            )
            for option in fields(kind)
        ]

    @functools.wraps(command)
    def grouped(**values: Any) -> None:
        for name, kind in groups.items():
            values[name] = kind(**{option.name: values.pop(option.name) for option in fields(kind)})
        command(**values)

    grouped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    grouped.__annotations__ = {one.name: one.annotation for one in parameters}
    return grouped
