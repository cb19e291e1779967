"""The input buffers that recorded steps read: one owner, one writer.

A recorded step reads fixed addresses. `CudaGraphBufferRegistry` holds the tensors at those addresses as named slots,
and `fill_from` alone writes to them, before each replay: the batch into the head of every slot, and into the tail, up
to the size that was recorded, what the slot's `PaddingPolicy` says. A graph runner has a registry and no buffers of its
own; which slots there are is said in `build_decode_registry` and `build_prefill_registry`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch

from runtime.model_executor import input_buffers
from runtime.model_executor.graph_fills import FillPlan, VectorCopies
from runtime.model_executor.graph_slots import AXES, FillContext, GraphSlot, PaddingPolicy

__all__ = [
    "AXES",
    "CudaGraphBufferRegistry",
    "FillContext",
    "GraphSlot",
    "PaddingPolicy",
    "build_decode_registry",
    "build_prefill_registry",
    "local_num_token_non_padded",
]

BatchT = TypeVar("BatchT")

MAX_PLANS = 4096
"""Combinations of sizes whose views are kept."""


class CudaGraphBufferRegistry:
    """Owns or adopts the input buffers of recorded steps, and fills them.

    Args:
        device: where slots are that do not say otherwise.
        max_bs: requests of a recorded step at most.
        max_num_tokens: tokens of a recorded step at most.
        share_pool: buffers are shared with other registries of the process, see `input_buffers`.
    """

    def __init__(self, device: torch.device, max_bs: int, max_num_tokens: int, share_pool: bool = False) -> None:
        self.device = torch.device(device)
        self.max_bs = max_bs
        self.max_num_tokens = max_num_tokens
        self.share_pool = share_pool
        self._slots: dict[str, GraphSlot] = {}
        self._disabled: dict[str, GraphSlot] = {}
        self._plans: dict[tuple[int, int, int, int], FillPlan] = {}
        self._views: dict[tuple[int, int], dict[str, torch.Tensor]] = {}
        self._paddings: dict[tuple[torch.dtype, float], torch.Tensor] = {}

    def register_slot(self, slot: GraphSlot, bind: torch.Tensor | None = None) -> GraphSlot:
        """Add a slot and give it its buffer.

        Args:
            slot: the slot.
            bind: the buffer, adopted as it is, neither shared nor initialised; None for a new one: zeros, or
                `pad_value` where the policy fills, shared if the registry shares.

        Raises:
            ValueError: the name is taken, or `bind` is of another shape, dtype or device.
        """
        if slot.name in self._slots or slot.name in self._disabled:
            raise ValueError(f"slot {slot.name!r} is registered already: give each input buffer one name and one slot")
        if not slot.enabled:
            self._disabled[slot.name] = slot
            return slot
        shape = tuple(slot.shape_fn(self.max_bs, self.max_num_tokens))
        device = torch.device(slot.device or self.device)
        if bind is not None:
            same_device = bind.device.type == device.type and device.index in (None, bind.device.index)
            if tuple(bind.shape) != shape or bind.dtype is not slot.dtype or not same_device:
                raise ValueError(
                    f"slot {slot.name!r} is {slot.dtype} {shape} on {device}, and cannot adopt a buffer that is"
                    f" {bind.dtype} {tuple(bind.shape)} on {bind.device}"
                )
            slot.buffer = bind
        else:
            buffer = torch.zeros(shape, dtype=slot.dtype, device=device)
            slot.buffer = input_buffers.share_input_buffer(slot.name, buffer) if self.share_pool else buffer
            self._initialise(slot)
        self._slots[slot.name] = slot
        self._plans.clear()
        self._views.clear()
        return slot

    def has_slot(self, name: str) -> bool:
        """Whether there is such a slot; one that is not enabled does not count."""
        return name in self._slots

    def slot_names(self) -> list[str]:
        """The enabled slots, as they were registered."""
        return list(self._slots)

    def slot(self, name: str) -> GraphSlot:
        """The slot of that name.

        Raises:
            RuntimeError: there is none, or it is not enabled.
        """
        if name not in self._slots:
            what = "is not enabled" if name in self._disabled else "does not exist"
            raise RuntimeError(f"slot {name!r} {what}: the registry has {', '.join(self._slots) or 'none'}")
        return self._slots[name]

    def slice_for(self, padded_bs: int, padded_num_tokens: int) -> dict[str, torch.Tensor]:
        """For each slot the view that a step of these sizes reads.

        Raises:
            RuntimeError: the sizes are larger than the buffers.
        """
        views = self._views.get((padded_bs, padded_num_tokens))
        if views is None:
            context = FillContext(padded_bs, padded_bs, padded_num_tokens, padded_num_tokens)
            self._check_sizes(context)
            if len(self._views) >= MAX_PLANS:
                self._views.clear()
            views = {name: _head(slot, context) for name, slot in self._slots.items()}
            self._views[padded_bs, padded_num_tokens] = views
        return dict(views)

    def fill_from(
        self,
        forward_batch: Any,
        *,
        raw_bs: int,
        padded_bs: int,
        raw_num_tokens: int,
        padded_num_tokens: int,
        pp_proxy_tensors: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Write a batch into the buffers, and padding up to the recorded size.

        One grouped copy per pair of dtypes. Work goes to the caller's stream. A field of the batch that is None, no
        tensor, or missing leaves its slot as it is, padding aside.

        Args:
            forward_batch: the batch; its fields are found by the names of slots.
            raw_bs: requests in it.
            padded_bs: requests of the recorded step.
            raw_num_tokens: tokens in it.
            padded_num_tokens: tokens of the recorded step.
            pp_proxy_tensors: what a pipeline's stage before has sent.

        Raises:
            RuntimeError: the batch is larger than the step, or the step than the buffers.
            ValueError: a field does not have the shape that its slot and these sizes say.
        """
        plan = self._plans.get((raw_bs, padded_bs, raw_num_tokens, padded_num_tokens))
        if plan is None:
            plan = self._plan(FillContext(raw_bs, padded_bs, raw_num_tokens, padded_num_tokens))
        vectors = plan.vectors
        if vectors is None or not vectors.copied(forward_batch):
            self._fill(plan, forward_batch, pp_proxy_tensors)
        if plan.post_fills:
            context = dataclasses.replace(plan.context, pp_proxy_tensors=pp_proxy_tensors)
            for slot, buffer in plan.post_fills:
                assert slot.post_fill is not None, "chosen for having one"
                slot.post_fill(buffer, forward_batch, context)

    def extract_buffer(self, padded_bs: int, padded_num_tokens: int, forward_batch_template: BatchT) -> BatchT:
        """A batch whose tensors are the buffers, as a recorded step reads them.

        Fields of `forward_batch_template` (a dataclass) that have a slot become its view; one that is None stays None,
        so that nobody reads what an earlier batch has left, unless what is in the slot is computed anew at each fill.
        All other fields are the template's, which is not changed; what tells the host lengths is the caller's to pad.

        Raises:
            RuntimeError: the sizes are larger than the buffers.
        """
        views = self.slice_for(padded_bs, padded_num_tokens)
        fields = {field.name for field in dataclasses.fields(forward_batch_template) if field.init}  # type: ignore[arg-type]
        changed = {
            name: view
            for name, view in views.items()
            if name in fields
            and (self._slots[name].computed or getattr(forward_batch_template, name, None) is not None)
        }
        return dataclasses.replace(forward_batch_template, **changed)  # type: ignore[type-var]

    def reset_for_capture(self) -> None:
        """Put every buffer of this registry into the state from which steps are recorded: what is used as an index is
        zero, what has a sentinel holds it, also where another registry that shares the memory has left something."""
        input_buffers.zero_index_buffers(self.buffers())
        for slot in self._slots.values():
            self._initialise(slot)

    def buffers(self) -> dict[str, torch.Tensor]:
        """Every buffer, whole, by its slot's name."""
        return {name: slot.buffer for name, slot in self._slots.items() if slot.buffer is not None}

    def addresses(self) -> dict[str, int]:
        """Where every buffer begins; what a recorded step has been recorded with."""
        return {name: buffer.data_ptr() for name, buffer in self.buffers().items()}

    @staticmethod
    def _initialise(slot: GraphSlot) -> None:
        if slot.buffer is not None and slot.padding_policy in (PaddingPolicy.FILL_SENTINEL, PaddingPolicy.FILL_ONCE):
            slot.buffer.fill_(slot.pad_value)

    def _check_sizes(self, context: FillContext) -> None:
        fits = 0 <= context.raw_bs <= context.padded_bs <= self.max_bs
        fits &= 0 <= context.raw_num_tokens <= context.padded_num_tokens <= self.max_num_tokens
        if not fits:
            raise RuntimeError(
                f"a batch of {context.raw_bs} requests and {context.raw_num_tokens} tokens does not fit a step of"
                f" {context.padded_bs} and {context.padded_num_tokens}, or that not buffers of {self.max_bs} and"
                f" {self.max_num_tokens}: choose a size that holds the batch and was registered for"
            )

    def _plan(self, context: FillContext) -> FillPlan:
        self._check_sizes(context)
        plan = FillPlan(context)
        for slot in self._slots.values():
            assert slot.buffer is not None, "enabled slots have a buffer"
            sizes = slot.sizes(context)
            if sizes is not None and sizes[1] > sizes[0]:
                tail = slot.buffer.narrow(slot.dim, sizes[0], sizes[1] - sizes[0])
                if slot.padding_policy is PaddingPolicy.ZERO:
                    plan.zeroed.append(tail)
                elif slot.padding_policy is PaddingPolicy.FILL_SENTINEL:
                    plan.filled.append((tail, slot.pad_value))
            if slot.copy_from_fb and (sizes is None or sizes[0]):
                raw = slot.buffer
                if sizes is not None and sizes[0] < raw.shape[slot.dim]:  # a view costs more to write to
                    raw = raw.narrow(slot.dim, 0, sizes[0])
                plan.heads.append((slot, raw))
            if slot.post_fill is not None:
                plan.post_fills.append((slot, _head(slot, context)))
        if len(self._plans) >= MAX_PLANS:
            self._plans.clear()
        sizes_key = (context.raw_bs, context.padded_bs, context.raw_num_tokens, context.padded_num_tokens)
        self._plans[sizes_key] = plan
        return plan

    def _vectors(self, plan: FillPlan, forward_batch: Any) -> VectorCopies | None:
        """None if a slot asks for more: a source of its own, another device, several dimensions, a field that is not
        there."""
        tails = [*((tail, 0.0) for tail in plan.zeroed), *plan.filled]
        sources: list[torch.Tensor] = []
        for slot, _ in plan.heads:
            source = getattr(forward_batch, slot.name, None)
            if slot.source_fn is not None or not isinstance(source, torch.Tensor):
                return None
            sources.append(source)
        tensors = [*(head for _, head in plan.heads), *(tail for tail, _ in tails), *sources]
        if not sources or any(t.dim() != 1 or t.device != tensors[0].device for t in tensors):
            return None
        return VectorCopies(plan.heads, sources, [(tail, self._padding(tail, value)) for tail, value in tails])

    def _padding(self, tail: torch.Tensor, value: float) -> torch.Tensor:
        """As many elements as `tail` has, of which each is `value`."""
        key = (tail.dtype, value)
        if key not in self._paddings:
            length = max(self.max_bs, self.max_num_tokens)
            self._paddings[key] = torch.full((length,), value, dtype=tail.dtype, device=tail.device)
        return self._paddings[key][: tail.shape[0]]

    def _fill(self, plan: FillPlan, forward_batch: Any, pp_proxy_tensors: Mapping[str, torch.Tensor] | None) -> None:
        """`fill_from` for any batch, and what prepares the next ones of these sizes."""
        context = plan.context
        if pp_proxy_tensors is not None:
            context = dataclasses.replace(context, pp_proxy_tensors=pp_proxy_tensors)
        copies = self._copies(plan, forward_batch, context)
        if plan.zeroed:
            torch._foreach_zero_(plan.zeroed)
        for tail, value in plan.filled:
            tail.fill_(value)
        for destinations, sources in copies:
            torch._foreach_copy_(destinations, sources)
        plan.fills += 1
        if plan.fills == 2:  # prompts seldom come in the same sizes again
            plan.vectors = self._vectors(plan, forward_batch)

    @staticmethod
    def _copies(
        plan: FillPlan, forward_batch: Any, context: FillContext
    ) -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
        """What is to be copied, grouped so that one call can do it. Raises before anything is written."""
        groups: dict[Any, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for slot, head in plan.heads:
            if slot.source_fn is None:
                source = getattr(forward_batch, slot.name, None)
            else:
                source = slot.source_fn(forward_batch, context)
            if not isinstance(source, torch.Tensor):
                continue
            destination = head
            if source.shape != head.shape:
                if slot.source_fn is not None and _is_shorter(source, head, slot.dim):
                    destination = head.narrow(slot.dim, 0, source.shape[slot.dim])
                else:
                    raise ValueError(
                        f"slot {slot.name!r} takes {tuple(head.shape)} of a batch of {context.raw_bs} requests and"
                        f" {context.raw_num_tokens} tokens, and the batch brings {tuple(source.shape)}"
                    )
            key = (destination.dtype, source.dtype, destination.device, source.device)
            destinations, sources = groups.setdefault(key, ([], []))
            destinations.append(destination)
            sources.append(source)
        return list(groups.values())


def _head(slot: GraphSlot, context: FillContext) -> torch.Tensor:
    """What a step of the context's padded sizes reads of a slot."""
    assert slot.buffer is not None, "enabled slots have a buffer"
    sizes = slot.sizes(context)
    return slot.buffer if sizes is None else slot.buffer.narrow(slot.dim, 0, sizes[1])


def _is_shorter(source: torch.Tensor, head: torch.Tensor, dim: int) -> bool:
    if source.dim() != head.dim() or source.shape[dim] > head.shape[dim]:
        return False
    return all(a == b for i, (a, b) in enumerate(zip(source.shape, head.shape, strict=True)) if i != dim)


def local_num_token_non_padded(
    num_tokens: int, padded_num_tokens: int, attn_tp_size: int = 1, attn_tp_rank: int = 0
) -> int:
    """How many of the rows that one rank holds are no padding.

    Derived from the recorded size, never from the batch's own: rows are scattered in equal parts of the padded step, so
    that counting by parts of the batch would take real rows for padding.

    Args:
        num_tokens: tokens of the batch, on all ranks together.
        padded_num_tokens: rows of the recorded step.
        attn_tp_size: ranks that the rows are scattered over; 1 where they are not.
        attn_tp_rank: this one.
    """
    part = padded_num_tokens // attn_tp_size
    return min(max(num_tokens - part * attn_tp_rank, 0), part)


def build_decode_registry(
    *,
    device: torch.device,
    max_bs: int,
    max_num_token: int,
    seq_len_fill_value: int,
    cache_loc_dtype: torch.dtype = torch.int64,
    is_multimodal: bool = False,
    enable_num_token_non_padded: bool = False,
    require_gathered_buffer: bool = False,
    require_mlp_tp_gather: bool = False,
    dp_size: int = 1,
    attn_tp_size: int = 1,
    attn_tp_rank: int = 0,
    source: Any = None,
    share_pool: bool = False,
) -> CudaGraphBufferRegistry:
    """The slots that a recorded decode reads.

    A padding request is a sequence of `seq_len_fill_value` tokens of request row 0 whose key and value go to KV slot 0;
    both are there for padding.

    Args:
        device: of the buffers.
        max_bs: requests at most.
        max_num_token: tokens at most: `max_bs` times tokens per request.
        seq_len_fill_value: length of a padding sequence.
        cache_loc_dtype: of `out_cache_loc`.
        is_multimodal: positions have three components.
        enable_num_token_non_padded: something in the step wants to know which rows are padding.
        require_gathered_buffer: rows are gathered, see `capture_sizes`; the counts of all ranks are then the recorded
            size, since all of them run the same one.
        require_mlp_tp_gather: there is one count per data-parallel rank, instead of one.
        dp_size: data-parallel ranks.
        attn_tp_size: ranks that rows are scattered over, where they are gathered.
        attn_tp_rank: this one.
        source: whose buffers to adopt: an object or mapping that has every enabled slot by its name; its
            `pp_proxy_tensors`, a dictionary, become slots too. None to make new ones.
        share_pool: new buffers are shared with other registries of the process.

    Raises:
        ValueError: `source` lacks a slot, or has it in another shape, dtype or device.
    """
    registry = CudaGraphBufferRegistry(device, max_bs, max_num_token, share_pool)
    slots = [
        *_token_slots(cache_loc_dtype, is_multimodal),
        GraphSlot("req_pool_indices", _per_request, torch.int64, "bs", padding_policy=PaddingPolicy.ZERO),
        GraphSlot(
            "seq_lens",
            _per_request,
            torch.int64,
            "bs",
            padding_policy=PaddingPolicy.FILL_SENTINEL,
            pad_value=seq_len_fill_value,
        ),
        _non_padded_slot(enable_num_token_non_padded, require_gathered_buffer, attn_tp_size, attn_tp_rank),
        *_global_count_slots(require_gathered_buffer, dp_size if require_mlp_tp_gather else 1),
    ]
    _register(registry, slots, source, PaddingPolicy.KEEP_PAD)
    return registry


def build_prefill_registry(
    *,
    device: torch.device,
    max_bs: int,
    max_num_token: int,
    cache_loc_dtype: torch.dtype = torch.int64,
    is_multimodal: bool = False,
    hidden_size: int | None = None,
    embed_dtype: torch.dtype | None = None,
    enable_num_token_non_padded: bool = False,
    require_gathered_buffer: bool = False,
    require_mlp_tp_gather: bool = False,
    dp_size: int = 1,
    attn_tp_size: int = 1,
    attn_tp_rank: int = 0,
    source: Any = None,
    share_pool: bool = False,
) -> CudaGraphBufferRegistry:
    """The slots that a recorded prefill reads: those along the tokens. Attention is not recorded and reads the batch.

    Args:
        hidden_size: multimodal: width of `input_embeds`, which the step itself writes.
        embed_dtype: multimodal: its dtype.

    The other arguments are those of `build_decode_registry`.

    Raises:
        ValueError: as `build_decode_registry`; or multimodal without `hidden_size` and `embed_dtype`.
    """
    registry = CudaGraphBufferRegistry(device, max_bs, max_num_token, share_pool)
    slots = _token_slots(cache_loc_dtype, is_multimodal)
    if is_multimodal:
        if hidden_size is None or embed_dtype is None:
            raise ValueError("a multimodal prefill needs hidden_size and embed_dtype, for its input_embeds")
        width = hidden_size
        slots.append(
            GraphSlot(
                "input_embeds",
                lambda max_bs, max_num_tokens: (max_num_tokens, width),
                embed_dtype,
                "tokens",
                padding_policy=PaddingPolicy.ZERO,
                copy_from_fb=False,
            )
        )
    slots.append(_non_padded_slot(enable_num_token_non_padded, require_gathered_buffer, attn_tp_size, attn_tp_rank))
    slots += _global_count_slots(require_gathered_buffer, dp_size if require_mlp_tp_gather else 1)
    _register(registry, slots, source, PaddingPolicy.ZERO)
    return registry


def _per_request(max_bs: int, max_num_tokens: int) -> tuple[int, ...]:
    return (max_bs,)


def _per_token(max_bs: int, max_num_tokens: int) -> tuple[int, ...]:
    return (max_num_tokens,)


def _token_slots(cache_loc_dtype: torch.dtype, is_multimodal: bool) -> list[GraphSlot]:
    zero = PaddingPolicy.ZERO
    return [
        GraphSlot("input_ids", _per_token, torch.int64, "tokens", padding_policy=zero),
        GraphSlot("positions", _per_token, torch.int64, "tokens", padding_policy=zero),
        GraphSlot("out_cache_loc", _per_token, cache_loc_dtype, "tokens", padding_policy=zero),
        GraphSlot(
            "mrope_positions",
            lambda max_bs, max_num_tokens: (3, max_num_tokens),
            torch.int64,
            "tokens",
            dim=1,
            padding_policy=zero,
            enabled=is_multimodal,
        ),
    ]


def _non_padded_slot(enabled: bool, scattered: bool, attn_tp_size: int, attn_tp_rank: int) -> GraphSlot:
    size, rank = (attn_tp_size, attn_tp_rank) if scattered else (1, 0)

    def count(buffer: torch.Tensor, forward_batch: Any, context: FillContext) -> None:
        buffer.fill_(local_num_token_non_padded(context.raw_num_tokens, context.padded_num_tokens, size, rank))

    return GraphSlot(
        "num_token_non_padded",
        lambda max_bs, max_num_tokens: (1,),
        torch.int32,
        "none",
        enabled=enabled,
        copy_from_fb=False,
        post_fill=count,
    )


def _global_count_slots(enabled: bool, num_counts: int) -> list[GraphSlot]:
    def fill(buffer: torch.Tensor, forward_batch: Any, context: FillContext) -> None:
        buffer.fill_(context.padded_num_tokens)

    return [
        GraphSlot(
            name,
            lambda max_bs, max_num_tokens: (num_counts,),
            torch.int32,
            "none",
            enabled=enabled,
            copy_from_fb=False,
            post_fill=fill,
        )
        for name in ("global_num_tokens_gpu", "global_num_tokens_for_logprob_gpu")
    ]


def _register(
    registry: CudaGraphBufferRegistry, slots: Iterable[GraphSlot], source: Any, proxy_policy: PaddingPolicy
) -> None:
    for slot in slots:
        buffer = None
        if source is not None and slot.enabled:
            buffer = _of(source, slot.name)
            if buffer is None:
                raise ValueError(f"the source of input buffers has no {slot.name!r}: it must have every enabled slot")
        registry.register_slot(slot, buffer)
    for key, buffer in (_of(source, "pp_proxy_tensors") or {}).items():
        registry.register_slot(_proxy_slot(key, buffer, proxy_policy), buffer)


def _of(source: Any, name: str) -> Any:
    return source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)


def _proxy_slot(key: str, buffer: torch.Tensor, policy: PaddingPolicy) -> GraphSlot:
    """A tensor that the stage before in a pipeline sends, one row per token."""

    def sent(forward_batch: Any, context: FillContext) -> torch.Tensor | None:
        return None if context.pp_proxy_tensors is None else context.pp_proxy_tensors[key]

    width = tuple(buffer.shape[1:])
    return GraphSlot(
        f"pp_proxy_tensors.{key}",
        lambda max_bs, max_num_tokens: (max_num_tokens, *width),
        buffer.dtype,
        "tokens",
        padding_policy=policy,
        source_fn=sent,
    )
