"""Write docs/*.schema.json from the records; tests check that they are up to date."""

from __future__ import annotations

from pathlib import Path

from emotui.core.export.schema import schema_bytes, without_schema

DOCS = Path(__file__).resolve().parent.parent / "docs"
TARGETS = {"trace.schema.json": None, "without.schema.json": without_schema()}

if __name__ == "__main__":
    for name, schema in TARGETS.items():
        (DOCS / name).write_bytes(schema_bytes(schema))
        print(f"Wrote {DOCS / name}")
