"""The families and the text on which attribution is tested."""

from __future__ import annotations

import support_edits

from emotui.core.engine.model import LoadedModel

FAMILIES = ("llama", "gemma2", "gpt2")
TEXT = "He shouted at me for no reason and I could not answer."


def ids_of(model: LoadedModel, text: str = TEXT) -> list[int]:
    """Return the tokens of a text in the default template."""
    return support_edits.ids_of(model, text)
