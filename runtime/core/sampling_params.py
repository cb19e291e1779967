"""How one request wants its tokens chosen."""

import sys
from collections.abc import Callable

import msgspec

from runtime.core.errors import InvalidRequestError

# torch.Generator.manual_seed takes 64 bits; negative seeds would alias positive ones.
MAX_SEED = 2**63 - 1
MAX_COUNT = 2**31 - 1


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """Sampling parameters of one request; immutable, validated when made.

    Attributes:
        max_new_tokens: tokens to generate at most, at least 1.
        temperature: 0 is greedy; otherwise the logits are divided by it.
        top_p: nucleus size in (0, 1]; 1 is off.
        top_k: how many of the best tokens stay; 0 is off.
        seed: seed of this request's own generator; None draws one from the process's default generator.
        ignore_eos: go on past the model's end-of-sequence tokens.
        stop_token_ids: further tokens that end the request; the token itself is kept in the output.

    Raises:
        InvalidRequestError: a field is of the wrong type or out of range; the message names field, value and range.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_int("max_new_tokens", self.max_new_tokens, minimum=1, maximum=MAX_COUNT)
        _check_float("temperature", self.temperature, "a finite number >= 0", lambda v: 0.0 <= v <= sys.float_info.max)
        _check_float("top_p", self.top_p, "a number in (0, 1]", lambda v: 0.0 < v <= 1.0)
        _check_int("top_k", self.top_k, minimum=0, maximum=MAX_COUNT)
        if self.seed is not None:
            _check_int("seed", self.seed, minimum=0, maximum=MAX_SEED)
        if not isinstance(self.ignore_eos, bool):
            raise _invalid("ignore_eos", self.ignore_eos, "true or false")
        if not isinstance(self.stop_token_ids, tuple):
            raise _invalid("stop_token_ids", self.stop_token_ids, "a tuple of token ids")
        for token_id in self.stop_token_ids:
            _check_int("stop_token_ids", token_id, minimum=0, maximum=MAX_COUNT)
        # Integers are fine to write, but a message has room for floats only.
        msgspec.structs.force_setattr(self, "temperature", float(self.temperature))
        msgspec.structs.force_setattr(self, "top_p", float(self.top_p))

    @property
    def is_greedy(self) -> bool:
        """Whether the best token is taken without drawing."""
        return self.temperature == 0.0


def _invalid(field: str, value: object, allowed: str) -> InvalidRequestError:
    return InvalidRequestError(f"sampling parameter {field}={value!r} is not valid: it must be {allowed}")


def _check_int(field: str, value: object, *, minimum: int, maximum: int | None = None) -> None:
    allowed = f"an integer >= {minimum}" if maximum is None else f"an integer in [{minimum}, {maximum}]"
    # bool is an int to Python; True as a count is a mistake of the caller.
    if isinstance(value, bool) or not isinstance(value, int):
        raise _invalid(field, value, allowed)
    if value < minimum or (maximum is not None and value > maximum):
        raise _invalid(field, value, allowed)


def _check_float(field: str, value: object, allowed: str, in_range: Callable[[float], bool]) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not in_range(value):
        raise _invalid(field, value, allowed)
