"""A random-weight model of Gemma-2-2B's shape with a 16k SAE a layer: memory and seconds.

Everything is made on the spot in a temporary folder (9 GB at full size) and deleted again:

    python benchmarks/gemma_shape.py [--device cuda] [--layers 26] [--width 16384] [--tokens 32]

It runs `emotui inspect` three times: on one text, on a second text, and on the first text again
from the cache, and prints the peak memory of the engine (and of the GPU) beside what emotui
estimated. The exit code is 1 where the peak is over --limit or over the estimate + 10 %.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

DEMO = Path(__file__).parent.parent / "emotui" / "demo" / "emotui-demo"
SHARD_BYTES = 2**29
D_MODEL = 2304


def write_model(folder: Path, *, layers: int, vocabulary: int) -> int:
    """Write a random model in bfloat16, a shard of at most 0.5 GiB at a time; return its bytes."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    folder.mkdir(parents=True)
    config = Gemma2Config(
        vocab_size=vocabulary,
        hidden_size=D_MODEL,
        intermediate_size=9216,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        query_pre_attn_scalar=256,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        dtype="bfloat16",
        architectures=["Gemma2ForCausalLM"],
    )
    config.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (DEMO / name).is_file():
            shutil.copy(DEMO / name, folder / name)
    with torch.device("meta"):
        shapes = {
            name: list(tensor.shape)
            for name, tensor in Gemma2ForCausalLM(config).state_dict().items()
            if name != "lm_head.weight"  # tied to the embedding
        }
    shards: list[list[str]] = [[]]
    held = 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        if held and held + size > SHARD_BYTES:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    weight_map: dict[str, str] = {}
    generator = torch.Generator().manual_seed(0)
    total = 0
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: random_weight(shapes[name], generator) for name in names}
        total += sum(tensor.nbytes for tensor in tensors.values())
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def random_weight(shape: list[int], generator: torch.Generator) -> torch.Tensor:
    """Return a weight in bfloat16; norms (vectors) are zero, which Gemma reads as one."""
    if len(shape) == 1:
        return torch.zeros(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02, generator=generator)


def write_saes(root: Path, *, layers: int, width: int) -> int:
    """Write one JumpReLU SAE a layer in bfloat16, about 100 active at 16k; return their bytes."""
    generator = torch.Generator().manual_seed(1)
    total = 0
    for layer in range(layers):
        folder = root / f"layer_{layer:02d}"
        folder.mkdir(parents=True)
        rows = torch.empty(width, D_MODEL, dtype=torch.bfloat16)
        rows.normal_(std=D_MODEL**-0.5, generator=generator)
        tensors = {
            "W_enc": rows.T.contiguous(),
            "W_dec": rows,
            "b_enc": torch.zeros(width, dtype=torch.bfloat16),
            "b_dec": torch.zeros(D_MODEL, dtype=torch.bfloat16),
            # Of the residual of random blocks: each adds two outputs of norm 1 a component.
            "threshold": torch.full((width,), 2.5 * (3 + 2 * layer) ** 0.5, dtype=torch.bfloat16),
        }
        total += sum(tensor.nbytes for tensor in tensors.values())
        save_file(tensors, folder / "sae_weights.safetensors")
        config = {
            "architecture": "jumprelu",
            "d_in": D_MODEL,
            "d_sae": width,
            "dtype": "bfloat16",
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
            "metadata": {
                "hook_name": f"blocks.{layer}.hook_resid_post",
                "prepend_bos": True,
            },
        }
        (folder / "cfg.json").write_text(json.dumps(config))
    return total


def text_of(tokens: int, seed: str) -> str:
    """Return a text that with the template is about `tokens` tokens of the demo's tokenizer."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    words = [seed]
    more = [seed, "my", "dog", "died", "and", "the", "house", "is", "very", "quiet", "now"]
    room = tokens - len(tokenizer.encode(" The emotion is").ids)
    while len(tokenizer.encode(" ".join([*words, more[0]])).ids) <= room:
        words.append(more[0])
        more = [*more[1:], more[0]]
    return " ".join(words)


def inspect(text: str, arguments: argparse.Namespace, root: Path) -> dict[str, float]:
    """Run `emotui inspect` and return its statistics; its notes are shown."""
    command = [sys.executable, "-m", "emotui", "inspect", text]
    command += ["--model", str(root / "model"), "--sae", str(root / "saes")]
    command += ["--dtype", "bfloat16", "--device", arguments.device, "--offline"]
    command += ["--sae-memory", arguments.sae_memory] if arguments.sae_memory else []
    command += ["--cache-dir", str(root / "cache"), "--json", "--stats", "json"]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    seconds = time.monotonic() - started
    if done.returncode:
        raise SystemExit(done.stderr)
    lines = done.stderr.splitlines()
    for line in lines[:-1]:
        print(f"    {line}")
    trace = json.loads(done.stdout)
    print(f"    {len(trace['text']['tokens'])} tokens, {len(trace['features']['index'])} features")
    stats: dict[str, float] = json.loads(lines[-1])
    return {**stats, "command_seconds": seconds}


def main() -> int:
    """Make the model and the SAEs, run, report, delete; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=26)
    parser.add_argument("--vocabulary", type=int, default=256_000)
    parser.add_argument("--width", type=int, default=16_384)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--sae-memory", default="", help="as of emotui; one SAE is 151 MB at 16k")
    parser.add_argument("--limit", type=float, default=12.0, help="GiB the engine may take")
    parser.add_argument("--folder", type=Path, help="where the files go; a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        root = Path(place)
        started = time.monotonic()
        model = write_model(
            root / "model", layers=arguments.layers, vocabulary=arguments.vocabulary
        )
        saes = write_saes(root / "saes", layers=arguments.layers, width=arguments.width)
        print(f"written: model {model / 2**30:.2f} GiB, SAEs {saes / 2**30:.2f} GiB", end=" ")
        print(f"in {time.monotonic() - started:.0f} s")
        first, second = text_of(arguments.tokens, "today"), text_of(arguments.tokens, "tonight")
        bad = 0
        for name, text in (("first", first), ("second", second), ("reopened", first)):
            print(f"{name}:")
            stats = inspect(text, arguments, root)
            peak, estimate = stats["peak_bytes"] / 2**30, stats["estimate_bytes"] / 2**30
            print(f"  {stats['command_seconds']:.1f} s in all", end="")
            if not stats["forwards"]:
                print(", from the cache")
                continue
            print(f", {stats['engine_seconds']:.1f} s of them in the engine")
            print(f"  peak {peak:.2f} GiB, estimated {estimate:.2f} GiB")
            bad |= peak > arguments.limit or peak > 1.1 * estimate
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
