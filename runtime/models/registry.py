"""Which class runs which architecture."""

from __future__ import annotations

from typing import TypeAlias

from runtime.models.hf_config import JsonObject, LlamaConfig
from runtime.models.llama import LlamaForCausalLM

CausalLM: TypeAlias = LlamaForCausalLM
"""The models there are."""

ModelConfig: TypeAlias = LlamaConfig
"""Their configurations."""

ARCHITECTURES: dict[str, type[CausalLM]] = {"LlamaForCausalLM": LlamaForCausalLM}
"""Architecture name, as `config.json` has it, to class."""


def resolve_architecture(config: JsonObject) -> type[CausalLM]:
    """The class for the first of the config's `architectures`.

    Raises:
        ModelLoadError: the field is missing or ill-typed, or names an architecture that is not implemented.
    """
    names = config.values.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise config.error("architectures", f"must be a list of architecture names, not {names!r}")
    if names[0] not in ARCHITECTURES:
        raise config.error("architectures", f"is {names[0]!r}: implemented are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[names[0]]
