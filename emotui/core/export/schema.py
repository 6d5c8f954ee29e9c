"""The JSON Schema of documents, generated from the records."""

from __future__ import annotations

from typing import Any

import msgspec

from emotui.core.records import TraceDocument

_VERSION = "schema_version"


def schema_of(name: str, *types: Any) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of documents that are one of `types`.

    The title holds the name, and the version where the records have one.
    """
    schemas, components = msgspec.json.schema_components(types, ref_template="#/$defs/{name}")
    version = next((f", schema version {v}" for v in map(_version_of, types) if v is not None), "")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"emotui {name} document{version}",
        **(schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}),
        "$defs": components,
    }


def _version_of(kind: Any) -> int | None:
    """Return the schema version that documents of a type carry; None where they carry none."""
    if not isinstance(kind, type) or not issubclass(kind, msgspec.Struct):
        return None
    fields = {field.name: field.default for field in msgspec.structs.fields(kind)}
    version: int | None = fields.get(_VERSION)
    return version


def trace_schema() -> dict[str, Any]:
    """Return the JSON Schema of `TraceDocument`."""
    return schema_of("trace", TraceDocument)


def schema_bytes(schema: dict[str, Any]) -> bytes:
    """Return a schema as it is kept in docs: sorted keys, indented, newline at the end."""
    return msgspec.json.format(msgspec.json.encode(schema, order="sorted"), indent=2) + b"\n"
