"""Measure the probes of the demo: fitted on texts the model was not trained on, by the program.

    python benchmarks/demo_probes.py --data ../shared/data [--model FOLDER] [--json]

Two fits through `emotui probe fit`: on GoEmotions' dev rows of one label, judged on its test rows;
and on the bundled situations, judged on the held-out topics' texts without emotion words. The
layer of the residual stream is chosen on the dev part of each; beside its balanced accuracy stand
the bag of embeddings and the 95th percentile, as the maximum over layers, for shuffled labels.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts" / "demo"))

from demo_data import write_comments

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("EMOTUI_DATA", ROOT.parent / "shared" / "data"))


def fit(model: Path, cache: Path, *more: str) -> list[dict[str, Any]]:
    """Run `emotui probe fit` and return the cards of its two probes."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "emotui", "probe", "fit", "--model", str(model)),
            *("--json", "--offline", "--cache-dir", str(cache), *more),
        ],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    cards = json.loads(done.stdout)
    return cards if isinstance(cards, list) else cards["probes"]


def summary(card: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of the residual layer that the dev texts choose."""
    layers = [score for score in card["scores"] if score["site"] == "resid" and score["layer"] >= 0]
    best = max(layers, key=lambda score: (score["dev_accuracy"], -score["layer"]))
    names = ("balanced_accuracy", "bag_accuracy", "bag_error", "shuffled_95", "shuffled_mean")
    return {
        "kind": card["kind"],
        "judged_on": card["judged_on"],
        "layer": best["layer"],
        **{name: round(best[name], 4) for name in names},
        "margin": round(best["balanced_accuracy"] - best["bag_accuracy"], 4),
        "named_accuracy": best.get("named_accuracy"),
        "unnamed_accuracy": best.get("unnamed_accuracy"),
        "trust": best["trust"],
        "by_layer": [round(score["balanced_accuracy"], 3) for score in layers],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--model", type=Path, default=ROOT / "emotui" / "demo" / "emotui-demo")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        dev, test = place / "goemotions-dev.tsv", place / "goemotions-test.tsv"
        write_comments(options.data, "dev", dev)
        write_comments(options.data, "test", test)
        named = ("--data", str(dev), "--other", str(test))
        for name, more in (("GoEmotions", named), ("situations", ())):
            cards = fit(options.model, place / "cache", *more)
            report[name] = [summary(card) for card in cards]
    if options.json:
        print(json.dumps(report, indent=1))
        return
    for name, entries in report.items():
        for entry in entries:
            print(
                f"{name} {entry['kind']}: layer {entry['layer']} {entry['balanced_accuracy']:.3f}, "
                f"bag of embeddings {entry['bag_accuracy']:.3f} "
                f"(margin {entry['margin']:+.3f}, error {entry['bag_error']:.3f}), "
                f"shuffled {entry['shuffled_95']:.3f}, {entry['trust']}; by layer "
                f"{' '.join(f'{value:.2f}' for value in entry['by_layer'])}"
            )


if __name__ == "__main__":
    main()
