"""From a checkpoint directory to a model with its weights.

Only safetensors files are read: nothing is ever unpickled, and no code of a checkpoint is ever run.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable

import safetensors
import torch

from runtime.core.errors import ConfigError, ModelLoadError
from runtime.models import hf_config, registry
from runtime.models.decoder import OUTPUT_PROJECTION, TOKEN_TABLE, CausalLM
from runtime.models.model_config import ModelConfig

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Dtypes a model can run in, by the names of `ServerArgs.dtype` and `config.json`."""

# What safetensors calls the dtypes a weight may be stored in. Others (integers, 8-bit floats) are quantized weights
# whose scales live elsewhere: converting their numbers would load nonsense.
_STORED_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def load_config(model_dir: str) -> tuple[type[CausalLM], ModelConfig]:
    """The model class and configuration of a checkpoint directory.

    Raises:
        ModelLoadError: the directory, a file or a field is missing, damaged or asks for what is not implemented.
    """
    config, generation = hf_config.read_configs(model_dir)
    model_cls = registry.resolve_architecture(config)
    generation_args = {} if generation is None else {"generation_source": generation.source}
    values = None if generation is None else generation.values
    return model_cls, model_cls.config_cls.from_hf(config.values, values, source=config.source, **generation_args)


def resolve_dtype(name: str, config: ModelConfig, model_dir: str) -> torch.dtype:
    """The torch dtype called `name`; "auto" is the one that `config.json` names or, if it names none, that the first
    weight is stored in.

    Raises:
        ConfigError: no such dtype, or "auto" for a checkpoint in a dtype that no model runs in.
        ModelLoadError: the weights have to be looked at and cannot be read.
    """
    if name == "auto":
        own = config.dtype or _stored_dtype(model_dir)
        if own not in DTYPES:
            raise ConfigError(f"dtype='auto': the checkpoint's dtype is {own!r}, choose from {_names(DTYPES)}")
        return DTYPES[own]
    if name not in DTYPES:
        raise ConfigError(f"dtype={name!r} is not known: use auto or one of {_names(DTYPES)}")
    return DTYPES[name]


def load_model(model_dir: str, dtype: str | torch.dtype, device: torch.device) -> tuple[CausalLM, ModelConfig]:
    """Make the model of a checkpoint and fill it with the weights.

    Every tensor of the checkpoint must be used, and every weight of the model filled, exactly once. Names and shapes
    are checked before the first tensor is read; tensors are then read one at a time. Where `tie_word_embeddings` is set
    and the file has an output projection that is not the token table, the file is believed, as by transformers.

    Args:
        model_dir: directory with `config.json` and either `model.safetensors` or the shards that
            `model.safetensors.index.json` lists.
        dtype: dtype to run in, as a torch dtype, a name, or "auto" for the checkpoint's.
        device: where the weights go.

    Raises:
        ConfigError: `dtype` cannot be resolved.
        ModelLoadError: anything about the directory; one line that names the file or the tensors.
    """
    model_cls, config = load_config(model_dir)
    if isinstance(dtype, str):
        dtype = resolve_dtype(dtype, config, model_dir)
    files = _weight_files(model_dir)
    if config.tie_word_embeddings and _has_head_of_its_own(files):
        config = dataclasses.replace(config, tie_word_embeddings=False)
    try:
        model = model_cls(config, dtype, device)
    except RuntimeError as error:  # torch says so when it cannot allocate
        raise ModelLoadError(
            f"{model_dir}: the model that config.json describes does not fit the memory: {_one_line(error)[:200]}"
        ) from error
    targets = model.checkpoint_tensors()
    plan = _plan(model, targets, files)
    with torch.no_grad():
        for path, names in plan.items():
            with _open(path) as file:
                for name in names:
                    targets[name].copy_(_read(file, name, path))
    return model, config


def _weight_files(model_dir: str) -> dict[str, frozenset[str] | None]:
    """Weight files, each with the tensors the index promises in it; None where there is no index."""
    single = os.path.join(model_dir, SINGLE_FILE)
    if os.path.isfile(single):
        return {single: None}
    index_path = os.path.join(model_dir, INDEX_FILE)
    if not os.path.isfile(index_path):
        refused = sorted(f for f in os.listdir(model_dir) if f.endswith((".bin", ".pt", ".pth", ".ckpt")))
        if refused:
            raise ModelLoadError(
                f"{model_dir} has only pickled weights ({_names(refused)}), which are never loaded: "
                f"convert them to safetensors"
            )
        raise ModelLoadError(f"{model_dir} has no weights: neither {SINGLE_FILE} nor {INDEX_FILE}")
    index = hf_config.read_json_object(index_path)
    weight_map = index.values.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise index.error("weight_map", "must be an object that maps tensor names to file names")
    promised: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        # An index comes with the checkpoint: it must not be able to point anywhere else.
        if not isinstance(shard, str) or shard in ("", ".", "..") or "/" in shard or "\\" in shard or "\0" in shard:
            raise index.error("weight_map", f"gives {name!r} the file {shard!r}: only a plain file name is allowed")
        promised.setdefault(shard, set()).add(name)
    missing = sorted(shard for shard in promised if not os.path.isfile(os.path.join(model_dir, shard)))
    if missing:
        raise ModelLoadError(f"{model_dir} lacks {len(missing)} of its weight files: {_names(missing)}")
    return {os.path.join(model_dir, shard): frozenset(names) for shard, names in sorted(promised.items())}


def _has_head_of_its_own(files: Iterable[str]) -> bool:
    """Whether the files have an output projection with other numbers than the token table."""
    where: dict[str, str] = {}
    for path in files:
        with _open(path) as file:
            where |= dict.fromkeys({TOKEN_TABLE, OUTPUT_PROJECTION}.intersection(file.keys()), path)
    if len(where) < 2:
        return False
    found = []
    for name, path in where.items():
        with _open(path) as file:
            found.append(_read(file, name, path))
    return not torch.equal(*found)


def _stored_dtype(model_dir: str) -> str | None:
    """The dtype of the first weight, by its torch name if a model may run in it."""
    with _open(next(iter(_weight_files(model_dir)))) as file:
        for name in file.keys():  # noqa: SIM118  (a safetensors file is no mapping)
            stored = str(file.get_slice(name).get_dtype())
            return _STORED_DTYPES.get(stored, stored)
    return None


def _plan(
    model: CausalLM,
    targets: dict[str, torch.Tensor],
    files: dict[str, frozenset[str] | None],
) -> dict[str, list[str]]:
    """The tensors to read from each file, after checking that names, shapes and dtypes fit the model."""
    plan: dict[str, list[str]] = {}
    owner: dict[str, str] = {}
    extra: list[str] = []
    misfits: list[str] = []
    for path, promised in files.items():
        plan[path] = []
        with _open(path) as file:
            present = list(file.keys())
            if promised is not None and promised != set(present):
                raise ModelLoadError(
                    f"{path} does not match {INDEX_FILE}: "
                    f"missing {_names(sorted(promised - set(present)))}, "
                    f"not listed {_names(sorted(set(present) - promised))}"
                )
            for name in present:
                if name in owner:
                    raise ModelLoadError(f"{path}: tensor {name!r} is in {owner[name]} too")
                owner[name] = path
                target = targets.get(name)
                if target is None:
                    if not model.ignorable_tensor(name):
                        extra.append(name)
                    continue
                stored = file.get_slice(name)
                shape, stored_dtype = tuple(stored.get_shape()), stored.get_dtype()
                if shape != tuple(target.shape):
                    misfits.append(f"{name} is {list(shape)}, expected {list(target.shape)}")
                elif stored_dtype not in _STORED_DTYPES:
                    misfits.append(f"{name} is stored as {stored_dtype}, expected a floating-point weight")
                plan[path].append(name)
    missing = [name for name in targets if name not in owner]
    if missing or extra or misfits:
        problems = [
            f"{len(found)} {what}: {_names(found)}"
            for what, found in (
                ("missing", missing),
                ("not part of the model", extra),
                ("of the wrong shape or dtype", misfits),
            )
            if found
        ]
        where = os.path.dirname(next(iter(files)))
        raise ModelLoadError(f"{where}: the weights do not fit config.json; tensors {'; '.join(problems)}")
    return plan


def _open(path: str) -> safetensors.safe_open:
    try:
        return safetensors.safe_open(path, framework="pt", device="cpu")
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelLoadError(f"{path} is not a complete safetensors file: {_one_line(error)}") from error


def _read(file: safetensors.safe_open, name: str, path: str) -> torch.Tensor:
    try:
        return file.get_tensor(name)
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelLoadError(f"{path}: tensor {name!r} cannot be read: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _names(names: Iterable[str], limit: int = 5) -> str:
    listed = list(names)
    shown = ", ".join(listed[:limit]) or "none"
    return shown if len(listed) <= limit else f"{shown} and {len(listed) - limit} more"
