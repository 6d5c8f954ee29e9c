"""The JSON Schema of the exported documents, generated from the records."""

from __future__ import annotations

from typing import Any

import msgspec

from emotui.core.export.without import WithoutDocument
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


def without_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of what `emotui without --json` prints."""
    (schema,), components = msgspec.json.schema_components(
        [WithoutDocument], ref_template="#/$defs/{name}"
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "emotui without document, schema version 1",
        **schema,
        "$defs": components,
    }


def schema_bytes(schema: dict[str, Any] | None = None) -> bytes:
    """Return a schema as it is kept in docs: sorted keys, indented, newline at the end.

    None is that of the trace.
    """
    compact = msgspec.json.encode(trace_schema() if schema is None else schema, order="sorted")
    return msgspec.json.format(compact, indent=2) + b"\n"
