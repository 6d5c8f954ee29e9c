"""The JSON documents that commands print with `--json`, and the JSON Schema of each.

`scripts/write_schema.py` writes them as docs/schemas/NAME.schema.json; docs/json.md lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from emotui.cache.index import ShownTrace, TraceRow
from emotui.cache.label_rows import LabelRow
from emotui.cache.labels import LabelFile
from emotui.cache.neuronpedia import Imported
from emotui.cache.probes import ProbeCard
from emotui.cache.recipes import Recipe
from emotui.cache.store import StoreSize
from emotui.cache.upkeep import Freed, VerifyReport
from emotui.commands.directions import ExportedDirections
from emotui.commands.emotion import DefinedEmotion
from emotui.core.export.asked import ConsistencyDocument, TermsDocument
from emotui.core.export.compare import CompareDocument
from emotui.core.export.feature import FeatureDocument
from emotui.core.export.schema import schema_of
from emotui.core.export.where import WhereDocument
from emotui.core.export.without import WithoutDocument
from emotui.core.export.written import GenerationDocument
from emotui.core.model_list import ModelList
from emotui.core.protocol import Defined, LabelsFitted, StudyPlanned
from emotui.core.records import Note, TraceDocument
from emotui.core.sae_directory import Release
from emotui.core.studies.common.folder import StudyDocument
from emotui.core.studies.common.saved import ListedStudies
from emotui.core.studies.compare import Comparison

DOCUMENTS: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "trace": (TraceDocument,),
        "compare": (CompareDocument,),
        "consistency": (ConsistencyDocument,),
        "feature": (FeatureDocument,),
        "generate": (GenerationDocument,),
        "terms": (TermsDocument,),
        "where": (WhereDocument,),
        "without": (WithoutDocument,),
        "probe": (ProbeCard,),
        "probes": (list[ProbeCard],),
        "probe-export": (ExportedDirections,),
        "emotion": (Defined,),
        "emotions": (list[DefinedEmotion],),
        "labels-fit": (LabelsFitted,),
        "labels-import": (Imported,),
        "labels-list": (list[LabelFile],),
        "labels-show": (list[LabelRow],),
        "cache-list": (list[TraceRow],),
        "cache-show": (ShownTrace,),
        "cache-size": (StoreSize,),
        "cache-verify": (VerifyReport,),
        "cache-freed": (Freed,),
        "models": (ModelList, Release),
        "notes": (list[Note],),
        "recipe": (Recipe,),
        "recipes": (list[Recipe],),
        "study": (StudyDocument,),
        "study-runs": (list[StudyDocument],),
        "study-plan": (StudyPlanned,),
        "study-plans": (list[StudyPlanned],),
        "study-list": (ListedStudies,),
        "study-compare": (Comparison,),
    }
)
"""By the name of the schema, the records that a document of it is; any one of several."""

COMMANDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "inspect": ("trace",),
        "compare": ("compare",),
        "consistency": ("consistency",),
        "feature": ("feature",),
        "generate": ("generate",),
        "terms": ("terms",),
        "where": ("where",),
        "without": ("without",),
        "probe fit": ("probes",),
        "probe list": ("probes",),
        "probe show": ("probe",),
        "probe export": ("probe-export",),
        "probe import": ("emotion",),
        "emotion define": ("emotion",),
        "emotion list": ("emotions",),
        "labels fit": ("labels-fit",),
        "labels import": ("labels-import",),
        "labels list": ("labels-list",),
        "labels show": ("labels-show",),
        "cache list": ("cache-list",),
        "cache show": ("cache-show",),
        "cache size": ("cache-size",),
        "cache verify": ("cache-verify",),
        "cache prune": ("cache-freed",),
        "cache clear": ("cache-freed",),
        "models": ("models",),
        "note": ("notes",),
        "recipe show": ("recipe",),
        "recipe list": ("recipes",),
        "study run": ("study", "study-runs", "study-plan", "study-plans"),
        "study resume": ("study",),
        "study show": ("study",),
        "study list": ("study-list",),
        "study compare": ("study-compare",),
    }
)
"""By command, the schemas its `--json` follows: of `study run` that of a result, of several
results, and with `--dry-run` that of a plan, of several."""


def document_schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the documents of this name."""
    return schema_of(name, *DOCUMENTS[name])
