"""Write docs/trace.schema.json from the records; a test checks that it is up to date."""

from __future__ import annotations

from pathlib import Path

from emotui.core.export.schema import schema_bytes

TARGET = Path(__file__).resolve().parent.parent / "docs" / "trace.schema.json"

if __name__ == "__main__":
    TARGET.write_bytes(schema_bytes())
    print(f"Wrote {TARGET}")
