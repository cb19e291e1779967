"""Which class runs which architecture."""

from __future__ import annotations

from runtime.models.decoder import CausalLM
from runtime.models.deepseek import DeepseekV2ForCausalLM, DeepseekV3ForCausalLM, DeepseekV32ForCausalLM
from runtime.models.hf_config import JsonObject
from runtime.models.llama import LlamaForCausalLM, MistralForCausalLM
from runtime.models.mixtral import MixtralForCausalLM
from runtime.models.qwen import Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM

ARCHITECTURES: dict[str, type[CausalLM]] = {
    cls.__name__: cls
    for cls in (
        LlamaForCausalLM,
        MistralForCausalLM,
        MixtralForCausalLM,
        Qwen2ForCausalLM,
        Qwen3ForCausalLM,
        Qwen3MoeForCausalLM,
        DeepseekV2ForCausalLM,
        DeepseekV3ForCausalLM,
        DeepseekV32ForCausalLM,
    )
}
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
