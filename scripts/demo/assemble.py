"""Lay the trained parts out as the package ships them, and say how large they are.

    python scripts/demo/assemble.py --model build/demo/model/best --saes build/demo/saes \
        --out emotui/demo

Writes OUT/emotui-demo (config, float32 weights, tokenizer, the note for every export) and
OUT/saes/resid.L. Refuses anything that is
neither safetensors nor JSON, and more than 16 MB. The card, OUT/README.md, is written by hand from
the figures of benchmarks/demo_*.py, measured on what this wrote.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

MOST_BYTES = 16_000_000
NOTE = (
    "This demo model was trained on emotion labels for emotui; what it shows is no evidence about "
    "language models at large."
)
_MODEL_FILES = (
    *("config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json"),
)
_SAE_FILES = (
    *("cfg.json", "sae_weights.safetensors", "statistics.safetensors"),
    *("labels.json", "selectivity.json"),
)


def copied(source: Path, names: tuple[str, ...], target: Path) -> None:
    """Copy the named files, all of which must be there; modes as a package needs them."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(source / name, target / name)
        (target / name).chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--saes", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model = options.out / "emotui-demo"
    copied(options.model, _MODEL_FILES, model)
    (model / "emotui.json").write_text(json.dumps({"note": NOTE}) + "\n")
    for folder in sorted(options.saes.glob("resid.*")):
        copied(folder, _SAE_FILES, options.out / "saes" / folder.name)
    files = [path for path in options.out.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    for path in files:
        if path.suffix not in {".json", ".safetensors", ".md", ".py", ".emotui"}:
            raise SystemExit(f"{path} is not a kind of file the demo may hold.")
    print(f"{len(files)} files, {size / 1e6:.1f} MB in {options.out}")
    if size > MOST_BYTES:
        raise SystemExit(f"That is more than {MOST_BYTES / 1e6:.0f} MB.")


if __name__ == "__main__":
    main()
