"""Operations with one forward per platform: which one runs, what may be registered, and that hooks take."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pytest_mock import MockerFixture

from hookery import HookRegistry, HookType
from runtime import platforms
from runtime.core.errors import ConfigError
from runtime.layers.activation import SiluAndMul
from runtime.layers.layernorm import RMSNorm
from runtime.layers.rotary import RopeConfig, RotaryEmbedding
from runtime.platforms import discovery
from runtime.platforms.multi_platform import MultiPlatformOp
from runtime.sampling import sampler

CPU = torch.device("cpu")


@pytest.fixture
def on(mocker: MockerFixture) -> Callable[[str], None]:
    """A function that makes the current platform's dispatch key another one."""
    key = mocker.patch.object(type(platforms.current_platform), "get_dispatch_key", return_value="nobodys")

    def switch(name: str) -> None:
        key.return_value = name

    return switch


class Scale(MultiPlatformOp):
    """Says which forward ran; made anew for every test by `fresh`."""

    def forward_native(self, x: int, factor: int = 2) -> str:
        return f"native {x * factor}"

    def forward_cuda(self, x: int, factor: int = 2) -> str:
        return f"cuda {x * factor}"


@pytest.fixture
def op() -> type[MultiPlatformOp]:
    """A class with a native and a CUDA forward and nothing decided or registered."""
    return type("FreshScale", (MultiPlatformOp,), {k: v for k, v in vars(Scale).items() if k.startswith("forward_")})


@pytest.mark.parametrize(
    ("key", "expected"), [("cuda", "cuda 6"), ("cpu", "native 6"), ("rocm", "native 6"), ("vendor", "native 6")]
)
def test_the_platforms_forward_runs_and_native_where_there_is_none(
    op: type[MultiPlatformOp], on: Callable[[str], None], key: str, expected: str
) -> None:
    on(key)
    assert op().forward(3) == op().forward(x=3) == expected
    assert op().forward(3, factor=3) == expected.replace("6", "9")


@pytest.mark.parametrize("key", list(discovery.IN_TREE))
def test_every_in_tree_platform_has_a_forward_of_its_own_name(on: Callable[[str], None], key: str) -> None:
    def forward(self: Any) -> str:
        return key

    made = type("Op", (MultiPlatformOp,), {"forward_native": lambda self: "native", f"forward_{key}": forward})
    on(key)
    assert made().forward() == key


def test_the_choice_is_made_once_per_class(op: type[MultiPlatformOp], mocker: MockerFixture) -> None:
    asked = mocker.spy(type(platforms.current_platform), "get_dispatch_key")
    first, second = op(), op()
    for _ in range(3):
        first.forward(1)
        second.forward(1)
    assert asked.call_count == 1


def test_nothing_is_chosen_before_the_first_call(op: type[MultiPlatformOp], mocker: MockerFixture) -> None:
    asked = mocker.spy(type(platforms.current_platform), "get_dispatch_key")
    made = op()
    asked.assert_not_called()
    made.forward(1)
    asked.assert_called_once()


def vendor_forward(self: Scale, x: int, factor: int = 2) -> str:
    return f"vendor {x * factor}"


def other_forward(self: Scale, x: int, factor: int = 2) -> str:
    return f"other {x * factor}"


class TestRegistering:
    def test_a_plugins_forward_runs_on_its_platform_alone(
        self, op: type[MultiPlatformOp], on: Callable[[str], None]
    ) -> None:
        op.register_oot_forward(vendor_forward, "vendor")
        on("vendor")
        assert op().forward(3) == "vendor 6"
        on("cuda")
        op.resolve_forward()
        assert op().forward(3) == "cuda 6"

    def test_it_takes_for_instances_that_have_run_already(
        self, op: type[MultiPlatformOp], on: Callable[[str], None]
    ) -> None:
        derived = type("Derived", (op,), {})
        on("vendor")
        base_instance, derived_instance = op(), derived()
        assert base_instance.forward(3) == derived_instance.forward(3) == "native 6"
        op.register_oot_forward(vendor_forward, "vendor")
        assert base_instance.forward(3) == derived_instance.forward(3) == "vendor 6"

    def test_again_is_no_error_and_another_one_is(self, op: type[MultiPlatformOp]) -> None:
        op.register_oot_forward(vendor_forward, "vendor")
        op.register_oot_forward(vendor_forward, "vendor")
        with pytest.raises(ConfigError, match=r"'vendor'\): .*vendor_forward is registered already"):
            op.register_oot_forward(other_forward, "vendor")

    def test_two_lambdas_are_two(self, op: type[MultiPlatformOp]) -> None:
        first, second = (lambda self, x, factor=2: "1"), (lambda self, x, factor=2: "2")
        op.register_oot_forward(first, "vendor")
        op.register_oot_forward(first, "vendor")
        with pytest.raises(ConfigError, match="is registered already"):
            op.register_oot_forward(second, "vendor")

    @pytest.mark.parametrize("key", [*discovery.IN_TREE, "native"])
    def test_what_is_in_tree_is_hooked_instead(self, op: type[MultiPlatformOp], key: str) -> None:
        with pytest.raises(ConfigError, match=rf"{key} is not a plugin's; hook .*\.FreshScale\.forward_{key} to"):
            op.register_oot_forward(vendor_forward, key)

    @pytest.mark.parametrize("key", ["my device", "a-b", "x.y"])
    def test_a_key_is_part_of_an_identifier(self, op: type[MultiPlatformOp], key: str) -> None:
        with pytest.raises(ConfigError, match="part of an identifier"):
            op.register_oot_forward(vendor_forward, key)

    @pytest.mark.parametrize("forward", [3, functools.partial(vendor_forward), operator.add, Scale()])
    def test_only_a_function_can_be_one(self, op: type[MultiPlatformOp], forward: Any) -> None:
        with pytest.raises(ConfigError, match="is no function"):
            op.register_oot_forward(forward, "vendor")

    @pytest.mark.parametrize(
        "forward",
        [
            lambda self: "",
            lambda self, x: "",
            lambda self, x, scale=2: "",
            lambda self, x, factor=2, *, more: "",
            lambda self, x, factor, more: "",
            lambda self, y, factor=2: "",
            lambda self, x, factor: "",
            lambda self, *, x, factor=2: "",
            lambda self, x, factor=2, /: "",
            lambda x: "",
        ],
    )
    def test_one_that_does_not_take_the_calls_is_one_error_with_both_signatures(
        self, op: type[MultiPlatformOp], forward: Callable[..., Any], on: Callable[[str], None]
    ) -> None:
        on("vendor")
        with pytest.raises(ConfigError) as caught:
            op.register_oot_forward(forward, "vendor")
        message = str(caught.value)
        assert "FreshScale.register_oot_forward(..., 'vendor')" in message
        assert "forward_native(self, x: 'int', factor: 'int' = 2) -> 'str'" in message
        assert "<lambda>(" in message
        assert "\n" not in message
        assert op().forward(3) == "native 6"

    @pytest.mark.parametrize(
        "forward", [lambda self, *args, **kwargs: "ok", lambda self, x, factor=2, extra=None: "ok"]
    )
    def test_one_that_takes_more_is_welcome(
        self, op: type[MultiPlatformOp], forward: Callable[..., Any], on: Callable[[str], None]
    ) -> None:
        op.register_oot_forward(forward, "vendor")
        on("vendor")
        assert op().forward(3) == "ok"


class TestDefining:
    def test_an_op_needs_a_native_forward(self) -> None:
        with pytest.raises(ConfigError, match="has no forward_native"):
            type("Nothing", (MultiPlatformOp,), {})

    def test_a_platforms_forward_with_other_parameters_is_refused(self) -> None:
        namespace = {"forward_native": lambda self, x: x, "forward_cuda": lambda self, y: y}
        with pytest.raises(ConfigError, match=r"Odd\.forward_cuda: .*\(self, y\) does not take the calls"):
            type("Odd", (MultiPlatformOp,), namespace)

    def test_a_subclass_with_another_native_forward_does_not_run_the_platforms_of_its_base(
        self, op: type[MultiPlatformOp], on: Callable[[str], None]
    ) -> None:
        on("cuda")
        overriding = type("Other", (op,), {"forward_native": lambda self, x, factor=2: "overridden"})
        inheriting = type("Same", (op,), {})
        assert (overriding().forward(3), inheriting().forward(3)) == ("overridden", "cuda 6")


@pytest.fixture
def registry() -> Iterator[HookRegistry]:
    """A registry of this test's own, with nothing left of it afterwards."""
    made = HookRegistry()
    yield made
    made.revert()


class TestHooks:
    @pytest.mark.parametrize("run_before", [True, False], ids=["after the first call", "before the first call"])
    @pytest.mark.parametrize("attribute", ["forward_native", "forward"])
    def test_a_hook_takes_whenever_it_is_applied_and_leaves_again(
        self, registry: HookRegistry, run_before: bool, attribute: str, mocker: MockerFixture
    ) -> None:
        mocker.patch.object(SiluAndMul, "_forward_name", None)
        op, x = SiluAndMul(), torch.randn(2, 8)
        plain = SiluAndMul().forward_native(x)
        if run_before:
            op.forward(x)
        target = f"runtime.layers.activation.SiluAndMul.{attribute}"
        registry.register(target, lambda result, *args, **kwargs: result + 1, HookType.AFTER)
        registry.apply_hooks(strict=True)
        torch.testing.assert_close(op.forward(x), plain + 1)
        registry.revert()
        torch.testing.assert_close(op.forward(x), plain)

    def test_a_hook_on_the_forward_of_a_plugin_takes(
        self, registry: HookRegistry, on: Callable[[str], None], mocker: MockerFixture
    ) -> None:
        mocker.patch.object(HookedOp, "_forward_name", None)
        on("vendor")
        HookedOp.register_oot_forward(hooked_vendor_forward, "vendor")
        registry.register(f"{__name__}.HookedOp.forward_vendor", lambda *args, **kwargs: "hooked", HookType.REPLACE)
        registry.apply_hooks(strict=True)
        assert HookedOp().forward(3) == "hooked"

    def test_registering_again_loses_no_hook(
        self, registry: HookRegistry, on: Callable[[str], None], mocker: MockerFixture
    ) -> None:
        on("vendor")
        mocker.patch.object(TwiceOp, "_forward_name", None)
        TwiceOp.register_oot_forward(hooked_vendor_forward, "vendor")
        registry.register(f"{__name__}.TwiceOp.forward_vendor", lambda *args, **kwargs: "hooked", HookType.REPLACE)
        registry.apply_hooks(strict=True)
        TwiceOp.register_oot_forward(hooked_vendor_forward, "vendor")
        assert TwiceOp().forward(3) == "hooked"
        with pytest.raises(ConfigError, match=r"TwiceOp\.forward_vendor is hooked, .* revert it first"):
            TwiceOp.register_oot_forward(remade(hooked_vendor_forward), "vendor")
        registry.revert()
        TwiceOp.register_oot_forward(remade(hooked_vendor_forward, "remade"), "vendor")
        assert TwiceOp().forward(3) == "remade"

    def test_a_hook_on_an_inherited_native_forward_does_not_change_which_one_runs(
        self, registry: HookRegistry, on: Callable[[str], None], mocker: MockerFixture
    ) -> None:
        mocker.patch.object(InheritingOp, "_forward_name", None)
        on("cuda")
        registry.register(f"{__name__}.InheritingOp.forward_native", lambda *a, **k: "hooked", HookType.REPLACE)
        registry.apply_hooks(strict=True)
        assert InheritingOp().forward(3) == "cuda"
        assert InheritingOp().forward_native(3) == "hooked"


class HookedOp(MultiPlatformOp):
    """Hooked by name."""

    def forward_native(self, x: int) -> str:
        return "native"

    def forward_cuda(self, x: int) -> str:
        return "cuda"


class TwiceOp(HookedOp):
    """Registered for twice."""


def remade(function: Callable[..., Any], result: str = "again") -> Callable[..., Any]:
    """What a reload of its module would make of a function."""

    def made(self: Any, x: int) -> str:
        return result

    made.__module__, made.__qualname__ = function.__module__, function.__qualname__
    return made


class InheritingOp(HookedOp):
    """Has no forward of its own."""


def hooked_vendor_forward(self: HookedOp, x: int) -> str:
    return "vendor"


def make_norm(dtype: torch.dtype) -> RMSNorm:
    norm = RMSNorm(48, 1e-5, dtype, CPU)
    norm.weight.copy_(torch.randn(48))
    return norm


class TestTheOps:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_both_norms_are_the_formula(self, dtype: torch.dtype) -> None:
        norm, x = make_norm(dtype), torch.randn(5, 48).to(dtype)
        double = x.double()
        normed = (double / (double.square().mean(-1, keepdim=True) + 1e-5).sqrt()).to(dtype)
        expected = normed.double() * norm.weight.double()
        tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
        for forward in (norm.forward_native, norm.forward_cuda):
            got = forward(x.clone())
            assert got.dtype is dtype
            torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(norm.forward_native(x), norm.forward_cuda(x))

    @pytest.mark.parametrize(
        ("op", "arguments"),
        [
            (make_norm(torch.float32), (torch.randn(3, 48),)),
            (SiluAndMul(), (torch.randn(3, 10),)),
            (sampler.keep_top_p, (torch.randn(3, 20), [0.5, 1.0, 0.1])),
            (
                RotaryEmbedding(RopeConfig(), 8, 16, torch.float32, CPU),
                (torch.randn(3, 2, 8), torch.rand(3, 1, 8), torch.rand(3, 1, 8)),
            ),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, MultiPlatformOp) else None,
    )
    def test_norm_rotary_activation_and_top_p_are_ops_and_run_the_platforms_forward(
        self, op: MultiPlatformOp, arguments: tuple[Any, ...], on: Callable[[str], None], mocker: MockerFixture
    ) -> None:
        cls = type(op)
        mocker.patch.object(cls, "_forward_name", None)
        mocker.patch.object(cls, "_own_forwards", {**cls._own_forwards, "forward_vendor": None})
        vendor = mocker.patch.object(cls, "forward_vendor", create=True)
        native = op.forward(*arguments)
        assert isinstance(native, torch.Tensor)
        vendor.assert_not_called()
        on("vendor")
        cls.resolve_forward()
        assert op.forward(*arguments) is vendor.return_value
        vendor.assert_called_once_with(*arguments)

    def test_the_sampler_and_the_model_call_them(self, mocker: MockerFixture) -> None:
        spy = mocker.spy(sampler.KeepTopP, "forward_native")
        probs = sampler.probabilities(torch.tensor([[0.0, 1.0, 2.0, 9.0]]), [1.0], [0], [0.5])
        assert spy.call_count == 1
        assert probs.tolist() == [[0.0, 0.0, 0.0, 1.0]]
        assert math.isclose(probs.sum().item(), 1.0)
