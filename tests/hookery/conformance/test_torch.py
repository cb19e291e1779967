"""Hooked functions and torch: compiling, saving, differentiating, custom operators. The engine knows no torch."""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hookery import HookRegistry, HookType
from tests.hookery.conformance.cells import FUNCTION_ENGINES, GENERATED, IN_PLACE, WRAPT
from tests.hookery.support import Modules

torch = pytest.importorskip("torch")
testing = pytest.importorskip("torch._dynamo.testing")

# torch's own, from the inside of its compiler
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")

NET = """
import torch

def scale(x, factor=2.0): return x * factor

def caller(x): return scale(x) + 1

class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x * 2
    @staticmethod
    def backward(ctx, grad): return grad * 2

class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
    def forward(self, x, bias=None): return x * self.weight
    def helper(self, x): return x + 1

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = Layer()
    def forward(self, x): return self.layer(x) + self.layer.helper(x)
"""


@pytest.fixture
def net(modules: Modules) -> Iterator[types.ModuleType]:
    torch._dynamo.reset()
    yield modules.load("net", NET)
    torch._dynamo.reset()


def add_ten(result: Any, *args: Any, **kwargs: Any) -> Any:
    return result + 10


def triple(original_fn: Any, *args: Any, **kwargs: Any) -> Any:
    return original_fn(*args, **kwargs) * 3


def look(*args: Any, **kwargs: Any) -> None: ...


def typed_add_ten(result: Any, x: Any, factor: Any) -> Any:
    return result + 10


def typed_triple(original_fn: Any, x: Any, factor: Any) -> Any:
    return original_fn(x, factor) * 3


def compiled(function: Any) -> tuple[Callable[..., Any], Any]:
    counter = testing.CompileCounter()
    return torch.compile(function, fullgraph=True, backend=counter), counter


GENERIC = ((HookType.AFTER, add_ten), (HookType.AROUND, triple), (HookType.BEFORE, look))
TYPED = ((HookType.AFTER, typed_add_ten), (HookType.AROUND, typed_triple))


def put(registry: HookRegistry, target: str, engine: str, hooks: Any) -> list[Any]:
    made = [registry.register(target, hook, hook_type, engine=engine) for hook_type, hook in hooks]
    registry.apply_hooks()
    return made


def inputs() -> Iterator[Any]:
    for number in range(100):
        yield torch.full((2 + number % 7, 3), float(number))


@pytest.mark.parametrize("engine", [GENERATED, IN_PLACE])
@pytest.mark.parametrize("hooks", [GENERIC, TYPED], ids=["generic", "typed"])
class TestCompile:
    def test_a_compiled_caller_runs_the_hooks_and_compiles_as_often_as_the_unhooked_one(
        self, net: types.ModuleType, registry: HookRegistry, engine: str, hooks: Any
    ) -> None:
        call, plain = compiled(net.caller)
        for x in inputs():
            call(x)
        torch._dynamo.reset()
        made = put(registry, "net.scale", engine, hooks)
        call, counter = compiled(net.caller)
        for x in inputs():
            assert torch.equal(call(x), (x * 2 + 10) * 3 + 1)
        assert counter.frame_count == plain.frame_count
        assert all(hook.ran for hook in made)

    def test_a_hooked_function_compiled_itself(
        self, net: types.ModuleType, registry: HookRegistry, engine: str, hooks: Any
    ) -> None:
        call, plain = compiled(net.scale)
        for x in inputs():
            call(x)
        torch._dynamo.reset()
        put(registry, "net.scale", engine, hooks)
        call, counter = compiled(net.scale)
        for x in inputs():
            assert torch.equal(call(x), (x * 2 + 10) * 3)
        assert counter.frame_count == plain.frame_count

    def test_hooks_that_come_and_go_after_compiling_take_effect(
        self, net: types.ModuleType, registry: HookRegistry, engine: str, hooks: Any
    ) -> None:
        x = torch.ones(3)
        call, _ = compiled(net.caller)
        assert torch.equal(call(x), x * 2 + 1)
        put(registry, "net.scale", engine, hooks)
        assert torch.equal(call(x), (x * 2 + 10) * 3 + 1)
        registry.register("net.scale", lambda result, *args, **kwargs: -result, HookType.AFTER)
        registry.apply_hooks()
        assert torch.equal(call(x), -(x * 2 + 10) * 3 + 1)
        registry.revert()
        assert torch.equal(call(x), x * 2 + 1)


@pytest.mark.parametrize("engine", [GENERATED, IN_PLACE])
class TestModules:
    @pytest.mark.parametrize("target", ["net.Layer.forward", "net.Layer.helper"])
    def test_a_compiled_model_runs_the_hooks_of_its_methods(
        self, net: types.ModuleType, registry: HookRegistry, engine: str, target: str
    ) -> None:
        model, x = net.Model(), torch.ones(3)
        plain = model(x)
        put(registry, target, engine, [(HookType.AFTER, add_ten)])
        call, counter = compiled(model)
        for _ in range(3):
            assert torch.equal(call(x), plain + 10)
        assert counter.frame_count == 1

    def test_a_model_that_was_compiled_before_has_to_be_compiled_again(
        self, net: types.ModuleType, registry: HookRegistry, engine: str
    ) -> None:
        """A limit of torch: it does not look whether the methods of a module's class have changed."""
        model, x = net.Model(), torch.ones(3)
        call, _ = compiled(model)
        plain = call(x)
        put(registry, "net.Layer.forward", engine, [(HookType.AFTER, add_ten)])
        torch._dynamo.reset()
        assert torch.equal(call(x), plain + 10)
        assert torch.equal(model(x), plain + 10)

    def test_an_autograd_function_differentiates_and_compiles(
        self, net: types.ModuleType, registry: HookRegistry, engine: str
    ) -> None:
        put(registry, "net.Double.forward", engine, [(HookType.AFTER, lambda result, *args: result + 10)])
        put(registry, "net.Double.backward", engine, [(HookType.AFTER, lambda result, *args: result * 5)])
        x = torch.ones(3, requires_grad=True)
        y = net.Double.apply(x)
        y.sum().backward()
        assert torch.equal(y, torch.full((3,), 12.0))
        assert torch.equal(x.grad, torch.full((3,), 10.0))
        call = torch.compile(lambda x: net.Double.apply(x) + 1, fullgraph=True, backend="eager")
        x = torch.ones(3, requires_grad=True)
        y = call(x)
        y.sum().backward()
        assert torch.equal(y, torch.full((3,), 13.0))
        assert torch.equal(x.grad, torch.full((3,), 10.0))

    def test_transforms_go_through(self, net: types.ModuleType, registry: HookRegistry, engine: str) -> None:
        put(registry, "net.scale", engine, [(HookType.AFTER, add_ten)])
        x = torch.ones(4, 3)
        assert torch.equal(torch.vmap(net.scale)(x), x * 2 + 10)
        assert torch.equal(torch.func.grad(lambda x: net.scale(x).sum())(x), torch.full((4, 3), 2.0))

    def test_an_instance_that_holds_the_hooked_function_is_saved(
        self, net: types.ModuleType, registry: HookRegistry, engine: str
    ) -> None:
        put(registry, "net.scale", engine, [(HookType.AFTER, add_ten)])
        model = net.Model()
        model.how = net.scale
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        assert torch.equal(loaded.how(torch.ones(3)), torch.full((3,), 12.0))


def test_wrapt_does_not_compile_where_a_default_is_left_out(net: types.ModuleType, registry: HookRegistry) -> None:
    put(registry, "net.scale", WRAPT, GENERIC)
    call, _ = compiled(net.caller)
    with pytest.raises(Exception) as caught:  # noqa: PT011  (whatever dynamo makes of it)
        call(torch.ones(3))
    assert isinstance(caught.value, (AssertionError, torch._dynamo.exc.TorchDynamoException))


@pytest.mark.parametrize("engine", FUNCTION_ENGINES)
def test_scripting_a_caller_leaves_the_hooks_out(
    net: types.ModuleType, registry: HookRegistry, engine: str, recwarn: pytest.WarningsRecorder
) -> None:
    """A limit of torch.jit: it reads the source of the original."""
    x = torch.ones(3)
    put(registry, "net.scale", engine, [(HookType.AFTER, add_ten)])
    try:
        scripted = torch.jit.script(net.caller)
    except Exception:  # noqa: BLE001  (or it refuses)
        return
    assert torch.equal(scripted(x), x * 2 + 1)
    recwarn.clear()


def test_a_custom_operator_keeps_its_interface(modules: Modules, registry: HookRegistry) -> None:
    net = modules.load(
        "net",
        """
        import torch
        @torch.library.custom_op("hookery_conformance::twice", mutates_args=())
        def twice(x: torch.Tensor) -> torch.Tensor:
            return x * 2
        """,
    )
    (hook,) = put(registry, "net.twice", "auto", [(HookType.AFTER, add_ten)])
    net.twice.register_fake(lambda x: torch.empty_like(x))
    assert hook.engine == WRAPT
    assert torch.equal(net.twice(torch.ones(3)), torch.full((3,), 12.0))
    registry.revert()
    assert torch.equal(net.twice(torch.ones(3)), torch.full((3,), 2.0))


def test_a_function_that_was_compiled_already_is_hooked_around(net: types.ModuleType, registry: HookRegistry) -> None:
    net.scale = torch.compile(net.scale, backend="eager")
    original, x = net.scale, torch.ones(3)
    net.scale(x)
    put(registry, "net.scale", "auto", [(HookType.AFTER, add_ten)])
    assert torch.equal(net.scale(x), x * 2 + 10)
    again = torch.compile(net.scale, backend="eager")
    assert torch.equal(again(x), x * 2 + 10)
    registry.revert()
    assert net.scale is original


def test_torchs_own_functions_are_targets(registry: HookRegistry) -> None:
    seen: list[Any] = []
    names = ["torch.nn.functional.relu", "torch.nn.Linear.forward", "torch.nn.functional.linear", "torch.Tensor.add"]
    for name in names:
        registry.register(name, lambda *args, name=name, **kwargs: seen.append(name), HookType.BEFORE)
    registry.apply_hooks()
    torch.nn.functional.relu(torch.nn.Linear(3, 3)(torch.ones(3)).add(1))
    assert seen == [
        "torch.nn.Linear.forward",
        "torch.nn.functional.linear",
        "torch.Tensor.add",
        "torch.nn.functional.relu",
    ]
    assert {record.engine for record in registry.applied_hooks()} == {GENERATED, WRAPT}
    assert "torch" in sys.modules
