"""Build the sdist, then the wheel from that sdist, and check what the wheel holds.

The root links `core`, `cache` and `themes` must not reach the wheel as top-level packages, nor
hide the modules behind them. Exit code 1 with the reason otherwise.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIRED = (
    "emotui/core/records.py",
    "emotui/core/corpus/situations.tsv",
    "emotui/core/export/redo.txt",
    "emotui/cache/store.py",
    "emotui/cli.py",
    "emotui/themes/explorer.tcss",
    "emotui/demo/emotui-demo/model.safetensors",
    "emotui/demo/saes/resid.7/sae_weights.safetensors",
    "emotui/demo/example.json",
    "emotui/py.typed",
)
MAX_BYTES = 17_000_000


def build(target: str, source: Path, out: Path) -> Path:
    """Build `target` ("sdist" or "wheel") of `source` into `out` and return the file."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            f"--{target}",
            "--no-isolation",
            "-o",
            str(out),
            str(source),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return next(out.glob("*.tar.gz" if target == "sdist" else "*.whl"))


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        sdist = build("sdist", ROOT, work / "sdist")
        with tarfile.open(sdist) as archive:
            archive.extractall(work / "source", filter="data")
        wheel = build("wheel", next((work / "source").iterdir()), work / "wheel")
        names = zipfile.ZipFile(wheel).namelist()
        size = wheel.stat().st_size
    faults = [f"{name} is missing" for name in REQUIRED if name not in names]
    faults += [
        f"{name} would land at the top level of site-packages"
        for name in names
        if not name.startswith(("emotui/", "emotui-"))
    ]
    if size > MAX_BYTES:
        faults.append(f"the wheel weighs {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f} MB")
    for fault in faults:
        print(f"wheel: {fault}", file=sys.stderr)
    if not faults:
        print(f"wheel: {len(names)} files, {size / 1e6:.2f} MB, built from the sdist")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
