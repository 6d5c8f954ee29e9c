"""Fit the demo's probes and compute its example trace, and put both where the explorer finds them.

    python scripts/demo/bundle_example.py --data ../shared/data --text "..." \
        --edit "ablate L5/12 at readout"

Runs on the shipped model and SAEs in emotui/demo, and writes emotui/demo/example.json and
emotui/demo/cache (probes, the example's trace and the trace of its edit), laid out as the cache.
The probes are fitted on GoEmotions' dev rows of one label and judged on the situations of held-out
topics, which are of another source; the model was trained on neither (its checkpoint was chosen on
GoEmotions' dev rows and the dev topics).
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import tempfile
from pathlib import Path

import msgspec
from demo_data import EKMAN7, goemotions, single_label

from emotui.cache.demo import DEMO_FOLDER, demo_saes, demo_spec
from emotui.cache.prepare import prepare
from emotui.cache.store import Store
from emotui.core.client import EngineClient
from emotui.core.protocol import FitRequest, InspectRequest


def rows_of(data: Path, split: str, path: Path) -> Path:
    """Write the rows of one label of a split, with their class, and return the file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["text", "label"])
        for row in single_label(goemotions(data, split)):
            if row.ekman is not None:
                writer.writerow([row.text, EKMAN7[row.ekman.index(1.0)]])
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--edit", required=True)
    parser.add_argument("--keep-probes", action="store_true", help="use those that are there")
    options = parser.parse_args()
    target = DEMO_FOLDER / "cache"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with Store.open(root) as store, EngineClient(root, offline=True) as client:
            fit = FitRequest(
                spec=demo_spec(),
                cache_dir=folder,
                data=str(rows_of(options.data, "dev", root / "GoEmotions-dev.tsv")),
            )
            if options.keep_probes:
                shutil.copytree(target / "probes", root / "probes", dirs_exist_ok=True)
            else:
                client.submit(fit).result()
            request = InspectRequest(
                spec=demo_spec(), text=options.text, cache_dir=folder, saes=demo_saes()
            )
            for edits in ((), (options.edit,)):
                wanted = msgspec.structs.replace(request, edits=edits, selected=bool(edits))
                found = client.submit(prepare(wanted, store).request).result()
                print(found)
        shutil.rmtree(target, ignore_errors=True)
        for kind in ("traces", "probes"):
            shutil.copytree(root / kind, target / kind)
    for path in target.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    example = {"text": options.text, "edits": [options.edit]}
    (DEMO_FOLDER / "example.json").write_text(json.dumps(example, indent=1) + "\n")
    size = sum(path.stat().st_size for path in DEMO_FOLDER.rglob("*") if path.is_file())
    print(f"{size / 1e6:.1f} MB in {DEMO_FOLDER}")


if __name__ == "__main__":
    main()
