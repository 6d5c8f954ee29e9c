"""Sparse autoencoders: loading by layer under a byte budget, encoding, deltas.

For h at the site, D the decoder rows:

    f = activation((s*h - b_dec * apply_b_dec_to_input) @ W_enc + b_enc),   h' = f @ D + b_dec

with s the factor of `expected_average_only_in`, folded into W_enc, D and b_dec at loading as
SAELens does. activation: ReLU (standard), ReLU where above a threshold (jumprelu), the k largest
(topk; with `rescale_acts_by_decoder_norm` ranked and counted by the norm of their decoder row).
All in the run's dtype; equal to SAELens's own encode bit for bit in that dtype.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emotui.core.engine import sae_formats
from emotui.core.engine.capture import QuietJob
from emotui.core.engine.materials import head_count, head_size
from emotui.core.engine.memory import free_bytes, what_was_free
from emotui.core.engine.sae_formats import SaeConfig, refuse
from emotui.core.engine.sae_memory import SaeMemory
from emotui.core.engine.sae_store import converted_place, find_saes, read_converted
from emotui.core.errors import OutOfMemory, SaeError
from emotui.core.model_names import same_family
from emotui.core.records import Site
from emotui.core.sizes import in_bytes
from emotui.core.text import clean

if TYPE_CHECKING:
    from emotui.core.engine.capture import Job
    from emotui.core.engine.model import LoadedModel

_NORM_ROWS = 2048


@dataclass(frozen=True, eq=False)
class SaeWeights:
    """The tensors of one SAE, in the run's dtype, on the device of its layer."""

    encoder: Tensor
    """W_enc, [d_in, width]."""
    encoder_bias: Tensor
    """b_enc, [width]."""
    decoder: Tensor
    """Rows D of the features, [width, d_in], as the file has them."""
    decoder_bias: Tensor
    """b_dec, [d_in]."""
    decoder_norm: Tensor
    """[width], of the directions that features write; float32."""
    threshold: Tensor | None
    mean: Tensor | None
    """[d_in], float32, of the site over the SAE's corpus; None where its folder has none."""
    labels: Mapping[int, str]

    @property
    def nbytes(self) -> int:
        """Bytes of encoder and decoder."""
        return self.encoder.nbytes + self.decoder.nbytes


@dataclass(frozen=True, eq=False)
class Sae:
    """One SAE of a source; its weights are loaded when first used, and again if let go."""

    id: str
    """`SOURCE/SITE.LAYER` under the SAE's own name, as in `saes/resid_pre.3`."""
    source: str
    config: SaeConfig
    owner: SaeSet

    @property
    def key(self) -> str:
        """16 hex digits that change when the SAE's folder does: for cache keys."""
        return self.config.key

    @property
    def site(self) -> Site:
        """The site it reads."""
        return self.config.site

    @property
    def layer(self) -> int:
        """The layer of `site` it reads."""
        return self.config.layer

    @property
    def width(self) -> int:
        """Number of features."""
        return self.config.width

    @property
    def weights(self) -> SaeWeights:
        """The tensors; SaeError where the file is damaged."""
        return self.owner.weights_of(self)

    def read(self, h: Tensor) -> Tensor:
        """Return `h` [..., d_in] as the SAE was trained to read it: centred, where it was."""
        return h - h.mean(dim=-1, keepdim=True) if self.config.centred else h

    def encode(self, h: Tensor) -> Tensor:
        """Return feature activations [..., width] of `h` [..., d_in]; differentiable in `h`.

        On the device of the weights; `h` is moved there where it is elsewhere.
        """
        weights, config = self.weights, self.config
        # Term by term as SAELens computes it, for equality to the bit.
        inputs = self.read(h).to(weights.encoder)
        inputs = inputs - weights.decoder_bias * config.apply_b_dec_to_input
        before = inputs @ weights.encoder + weights.encoder_bias
        if weights.threshold is not None:
            return before.relu() * (before > weights.threshold).to(before.dtype)
        if config.k is None:
            return before.relu()
        if config.rescale_by_decoder_norm:
            before = before * weights.decoder.norm(dim=-1)
        values, indices = before.topk(config.k, dim=-1, sorted=False)
        return torch.zeros_like(before).scatter_(-1, indices, values.relu())

    @torch.no_grad()
    def decode(self, features: Tensor) -> Tensor:
        """Return the reconstruction [..., d_in] of `features` [..., width]."""
        weights = self.weights
        if self.config.rescale_by_decoder_norm:
            features = features * (1 / weights.decoder.norm(dim=-1))
        rebuilt: Tensor = features @ weights.decoder + weights.decoder_bias
        return rebuilt

    def directions(self, indices: Sequence[int]) -> Tensor:
        """Return what one unit of each feature adds to h: [len(indices), d_in]."""
        decoder = self.weights.decoder
        # Many times quicker than indexing with a list, for the thousands of features of a text.
        rows = decoder.index_select(
            0, torch.tensor(list(indices), dtype=torch.long).to(decoder.device)
        )
        if self.config.rescale_by_decoder_norm:
            norms: Tensor = rows.norm(dim=-1, keepdim=True)
            return rows / norms
        return rows


class SaeSet:
    """The SAEs of one source, by site and layer, with their weights under a byte budget.

    The weights are held by `held`, which may hold those of other sources too.
    """

    def __init__(
        self,
        source: str,
        name: str,
        configs: Sequence[SaeConfig],
        model: LoadedModel,
        held: SaeMemory[SaeWeights],
        root: Path | None,
    ) -> None:
        self.source = source
        self._saes = {
            (config.site, config.layer): Sae(f"{name}/{config.own_name}", source, config, self)
            for config in configs
        }
        self._dtype = model.dtype
        self._model = model
        self.held = held
        self._root = root

    def __iter__(self) -> Iterator[Sae]:
        return (self._saes[place] for place in self.places)

    def __len__(self) -> int:
        return len(self._saes)

    @property
    def places(self) -> list[tuple[Site, int]]:
        """The sites and layers there is an SAE for, sorted."""
        return sorted(self._saes)

    @property
    def loaded_bytes(self) -> int:
        """Bytes of the weights in memory now, of other sources too."""
        return self.held.loaded_bytes

    def size_of(self, sae: Sae) -> int:
        """Return the bytes of an SAE's weights in memory."""
        return 2 * sae.config.width * sae.config.d_in * self._dtype.itemsize

    def conversion_bytes(self) -> int:
        """Return what is mapped of a file while an SAE that is stored in another dtype is read."""
        return max(
            (
                sae.config.width * sae.config.d_in * 4
                for sae in self
                if sae.config.stored != self._dtype and not self._is_converted(sae)
            ),
            default=0,
        )

    def to_convert(self) -> list[Sae]:
        """Return those whose weights are stored wider than they run, and not yet converted."""
        return [
            sae
            for sae in self
            if _is_wider(sae.config, self._dtype, self._root) and not self._is_converted(sae)
        ]

    def _is_converted(self, sae: Sae) -> bool:
        if not _is_wider(sae.config, self._dtype, self._root):
            return False
        assert self._root is not None
        weights = sae.config.folder / sae_formats.WEIGHTS
        return converted_place(weights, dtype=self._dtype, root=self._root).is_file()

    def missing(self) -> list[Sae]:
        """Return those whose weights are not in memory now."""
        return [sae for sae in self if not self.held.holds(self._held_as(sae))]

    def _held_as(self, sae: Sae) -> str:
        return f"{self.source}\0{sae.id}"

    def get(self, site: Site, layer: int) -> Sae:
        """Return one SAE; SaeError says what exists where it does not."""
        sae = self._saes.get((site, layer))
        if sae is None:
            raise refuse(
                f"{self.source} has no SAE for {site}.{layer}.",
                todo=f"It has: {', '.join(f'{s}.{n}' for s, n in self.places)}.",
            ).of_input()
        return sae

    def weights_of(self, sae: Sae) -> SaeWeights:
        """Return the weights of one of these SAEs, loading them where needed."""
        device = self._model.device_at(sae.layer)
        return self.held.get(
            self._held_as(sae),
            self.size_of(sae),
            lambda: _load(sae.config, dtype=self._dtype, device=device, root=self._root),
            lambda: self._too_large(sae),
            device=device,
        )

    def _too_large(self, sae: Sae) -> OutOfMemory:
        device = self._model.device_at(sae.layer)
        free = free_bytes(device)
        dtype = str(self._dtype).removeprefix("torch.")
        options = [f"--dtype bfloat16 takes {in_bytes(self.size_of(sae) // 2)}"]
        narrower = free // max(1, 2 * sae.config.d_in * self._dtype.itemsize)
        needed = self.size_of(sae)
        return OutOfMemory(
            clean(f"There was not enough memory for the SAE {sae.id}."),
            why=f"Its {sae.width:,} features take {in_bytes(needed)} in {dtype}; "
            f"no other SAE was left to let go, and {what_was_free(needed, free, device)}",
            todo=(f"What would fit: {options[0]}; " if self._dtype.itemsize > 2 else "What fits: ")
            + f"an SAE of at most {narrower:,} features (--sae RELEASE:ID, see `emotui models`); "
            "or --sae none.",
        )


def load_saes(
    source: str,
    model: LoadedModel,
    *,
    root: Path | None = None,
    job: Job | None = None,
    budget_bytes: int | None = None,
    held: SaeMemory[SaeWeights] | None = None,
) -> SaeSet:
    """Open the SAEs of a source (a folder, a params.npz, or RELEASE[:ID]) that fit the model.

    Reads configurations and headers; weights are read by `SaeSet.get`. What is fetched or
    converted is kept under `root`, the cache's folder. `budget_bytes` None is nine tenths of the
    memory that is free on each device; with `held` weights are held there, under its budget.
    SaeError where a model, site, width, BOS rule, normalisation or file does not fit.
    """
    job = job or QuietJob()
    check = partial(_check_fit, model=model)
    found = find_saes(source, model, root=root, job=job, check=check)
    taken: dict[tuple[Site, int], SaeConfig] = {}
    for folder in found.folders:
        config = sae_formats.read_config(folder)
        if config.centred and not isinstance(model.sites.final_norm, torch.nn.LayerNorm):
            config = replace(config, centred=False)  # nothing was centred where the norm is RMS
        check(config)
        other = taken.setdefault((config.site, config.layer), config)
        if other is not config:
            raise refuse(
                f"{source} holds two SAEs for {config.site}.{config.layer}.",
                f"They are in {_last_parts(other.folder)} and {_last_parts(config.folder)}.",
                "Give the folder of one of them, or RELEASE:ID.",
            )
    if held is None:
        held = SaeMemory(budget_bytes)
    opened = SaeSet(source, found.name, list(taken.values()), model, held, root)
    _note_other_model(found.name, list(taken.values()), model, job)
    if later := opened.to_convert():
        size = sum(opened.size_of(sae) for sae in later)
        job.notice(
            clean(
                f"The SAEs of {found.name} are stored wider than {model.dtype_name}: each is "
                f"converted once, when it is first read ({in_bytes(size)} in the cache in all)."
            )
        )
    return opened


def _is_wider(config: SaeConfig, dtype: torch.dtype, root: Path | None) -> bool:
    """Return whether a folder's weights are kept once more, in the narrower dtype of the run."""
    stored = config.stored
    return root is not None and stored is not None and stored.itemsize > dtype.itemsize


def _last_parts(folder: Path) -> str:
    return "/".join(folder.parts[-2:])


def _note_other_model(
    name: str, configs: Sequence[SaeConfig], model: LoadedModel, job: Job
) -> None:
    """Tell which model SAEs say they were trained on where a local folder's own name is another."""
    if model.hub_id is not None:
        return
    own = [model.folder.resolve().name]
    with contextlib.suppress(SaeError):
        told = sae_formats.read_json(model.folder / "config.json").get("_name_or_path")
        own += [told] if isinstance(told, str) else []
    others = {config.model_name for config in configs if config.model_name}
    others = {one for one in others if not any(same_family(one, name) for name in own)}
    if others:
        job.notice(
            clean(
                f"The SAEs of {name} say that they were trained on {', '.join(sorted(others))}; "
                f"whether the folder {own[0]} holds that model cannot be told."
            )
        )


def _check_fit(config: SaeConfig, model: LoadedModel) -> None:
    where = f"The SAE in {config.folder}"
    trained_on = config.model_name
    if trained_on and model.hub_id is not None and not same_family(trained_on, model.hub_id):
        raise refuse(
            f"{where} does not fit the model.",
            f"It was trained on {trained_on}; the model is {model.hub_id}.",
            "Use the SAEs that were trained on this model.",
        ).of_input()
    width = head_size(model) * head_count(model) if config.site == "z" else model.d_model
    if config.d_in != width:
        raise refuse(
            f"{where} does not fit the model.",
            f"It reads vectors of width {config.d_in}; the model's have {width}"
            + (" (all heads together)." if config.site == "z" else "."),
            "Use the SAEs that were trained on this model.",
        ).of_input()
    if config.layer >= model.n_layers:
        raise refuse(
            f"{where} does not fit the model.",
            f"It reads {config.own_name}; the model's last layer is {model.n_layers - 1}.",
            "Use the SAEs that were trained on this model.",
        ).of_input()
    # The other way round does no harm: the BOS token itself is never ranked or counted.
    if config.prepend_bos and not model.reader.begins_with_bos:
        raise refuse(
            f"{where} does not fit the way this model is run.",
            "It was trained on texts that begin with BOS, and this model's tokenizer adds none.",
            "Use SAEs trained without BOS (prepend_bos false).",
        ).of_input()


def _load(
    config: SaeConfig, *, dtype: torch.dtype, device: torch.device, root: Path | None
) -> SaeWeights:
    folder = config.folder
    weights = folder / sae_formats.WEIGHTS
    if root is not None and _is_wider(config, dtype, root):
        tensors = read_converted(weights, dtype=dtype, device=device, root=root)
    else:
        tensors = sae_formats.read_tensors(weights, device=device, dtype=dtype)
    width, d_in = config.width, config.d_in
    expected = {"W_enc": [d_in, width], "W_dec": [width, d_in], "b_enc": [width], "b_dec": [d_in]}
    if config.architecture == "jumprelu":
        expected["threshold"] = [width]
    factor = tensors.pop("scaling_factor", None)
    if factor is not None and not bool((factor == 1).all()):
        raise refuse(f"The SAE in {folder} cannot be used.", "It has a fine-tuned scaling factor.")
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        wrong = sorted(n for n in expected | found if expected.get(n) != found.get(n))[0]
        raise refuse(
            f"The weights of the SAE in {folder} do not fit its {sae_formats.CONFIG}.",
            f"{wrong} is {found.get(wrong, 'absent')}, expected {expected.get(wrong, 'absent')}.",
        )
    if config.scale != 1:
        tensors["W_enc"] = tensors["W_enc"] * config.scale
        tensors["W_dec"] = tensors["W_dec"] / config.scale
        tensors["b_dec"] = tensors["b_dec"] / config.scale
    # In parts: a float32 copy of the whole would be twice what is kept.
    parts = torch.split(tensors["W_dec"], _NORM_ROWS)
    norm = torch.cat([part.float().norm(dim=-1) for part in parts])
    return SaeWeights(
        encoder=tensors["W_enc"],
        encoder_bias=tensors["b_enc"],
        decoder=tensors["W_dec"],
        decoder_bias=tensors["b_dec"],
        decoder_norm=torch.ones_like(norm) if config.rescale_by_decoder_norm else norm,
        threshold=tensors.get("threshold"),
        mean=_corpus_mean(config, device=device),
        labels=sae_formats.read_labels(folder),
    )


def _corpus_mean(config: SaeConfig, *, device: torch.device) -> Tensor | None:
    path = config.folder / sae_formats.STATISTICS
    if not path.is_file():
        return None
    mean = sae_formats.read_tensors(path, device=device).get("mean")
    if mean is None or list(mean.shape) != [config.d_in]:
        raise refuse(f"{path} could not be used.", f"It has no `mean` of width {config.d_in}.")
    return mean.float()
