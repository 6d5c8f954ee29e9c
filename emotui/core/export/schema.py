"""The JSON Schema of the exported document, generated from the records."""

from __future__ import annotations

from typing import Any

import msgspec

from emotui.core.records import SCHEMA_VERSION, TraceDocument


def trace_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of `TraceDocument`, with a title and the version."""
    (schema,), components = msgspec.json.schema_components(
        [TraceDocument], ref_template="#/$defs/{name}"
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"emotui trace document, schema version {SCHEMA_VERSION}",
        **schema,
        "$defs": components,
    }


def schema_bytes() -> bytes:
    """Return the schema as it is kept in docs: sorted keys, indented, newline at the end."""
    compact = msgspec.json.encode(trace_schema(), order="sorted")
    return msgspec.json.format(compact, indent=2) + b"\n"
