"""Write docs/schemas/*.schema.json from the records; tests check that they are up to date."""

from __future__ import annotations

from pathlib import Path

from emotui.commands.schemas import DOCUMENTS, document_schema
from emotui.core.export.schema import schema_bytes

SCHEMAS = Path(__file__).resolve().parent.parent / "docs" / "schemas"

if __name__ == "__main__":
    for name in DOCUMENTS:
        target = SCHEMAS / f"{name}.schema.json"
        target.write_bytes(schema_bytes(document_schema(name)))
        print(f"Wrote {target}")
