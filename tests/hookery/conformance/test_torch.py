"""Hooked functions and torch: compiling, saving, differentiating, custom operators. The engine knows no torch."""

from __future__ import annotations

import copy
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
pytestmark = [
    pytest.mark.cell,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch"),
]

NET = """
import functools
import torch

def scale(x, factor=2.0): return x * factor

def caller(x): return scale(x) + 1

def double(x): return x * 2

def caller_of_double(x): return double(x) + 1

class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x * 2
    @staticmethod
    def backward(ctx, grad): return grad * 2

def caller_of_apply(x): return Double.apply(x) + 1

class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
    def forward(self, x, bias=None): return x * self.weight
    def helper(self, x): return x + 1

class Tools:
    def method(self, x): return x * 2
    @classmethod
    def of_class(cls, x): return x * 2
    @staticmethod
    def static(x): return x * 2
    def __call__(self, x): return x * 2
tools = Tools()
layer = Layer()
@functools.lru_cache
def cached(factor): return factor
half = functools.partial(torch.mul, other=0.5)
relu = torch.relu
def annotated(x: torch.Tensor) -> torch.Tensor: return x * 2
@torch.library.custom_op("hookery_conformance::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor: return x * 2
@twice.register_fake
def _(x): return torch.empty_like(x)

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
    @pytest.mark.parametrize("target", ["net.Layer.forward", "net.Layer.helper", "net.Model.forward"])
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
        call = torch.compile(net.caller_of_apply, fullgraph=True, backend="eager")
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


@pytest.mark.parametrize("engine", [GENERATED, IN_PLACE])
def test_an_autograd_function_is_compiled_once_its_backward_hook_has_run(
    net: types.ModuleType, registry: HookRegistry, engine: str
) -> None:
    """A limit of dynamo: in there it allows no store that changes anything, and the first call of a hook is noted."""
    (hook,) = put(registry, "net.Double.backward", engine, [(HookType.AFTER, lambda result, *args: result * 5)])
    for full_graph in (True, False):
        torch._dynamo.reset()
        x = torch.ones(3, requires_grad=True)
        call = torch.compile(net.caller_of_apply, fullgraph=full_graph, backend="eager")
        if full_graph:
            with pytest.raises(torch._dynamo.exc.Unsupported, match="Attribute 'ran'"):
                call(x)
        else:
            call(x).sum().backward()
            assert torch.equal(x.grad, torch.full((3,), 10.0))
    assert hook.ran
    torch._dynamo.reset()
    x = torch.ones(3, requires_grad=True)
    torch.compile(net.caller_of_apply, fullgraph=True, backend="eager")(x).sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 10.0))


@pytest.mark.parametrize("engine", FUNCTION_ENGINES)
class TestEveryEngine:
    @pytest.mark.parametrize("target", ["net.Layer.forward", "net.Layer.helper"])
    def test_a_model_that_was_compiled_before_has_to_be_compiled_again(
        self, net: types.ModuleType, registry: HookRegistry, engine: str, target: str
    ) -> None:
        """A limit of torch: it does not look whether the methods of the classes of modules have changed."""
        model, x = net.Model(), torch.ones(3)
        call = torch.compile(model, backend="eager")
        plain = call(x)
        put(registry, target, engine, [(HookType.AFTER, add_ten)])
        assert torch.equal(model(x), plain + 10)
        assert torch.equal(call(x), plain)
        torch._dynamo.reset()
        assert torch.equal(call(x), plain + 10)
        registry.revert()
        assert torch.equal(model(x), plain)
        assert torch.equal(call(x), plain if engine == WRAPT else plain + 10)
        torch._dynamo.reset()
        assert torch.equal(call(x), plain)

    def test_the_outermost_forward_of_a_compiled_model_is_looked_at_again(
        self, net: types.ModuleType, registry: HookRegistry, engine: str
    ) -> None:
        model, x = net.Model(), torch.ones(3)
        call = torch.compile(model, backend="eager")
        plain = call(x)
        put(registry, "net.Model.forward", engine, [(HookType.AFTER, add_ten)])
        assert torch.equal(call(x), plain + 10)
        registry.revert()
        assert torch.equal(call(x), plain)

    @pytest.mark.parametrize("target", ["net.Layer.forward", "net.Model.forward"])
    def test_hooks_of_modules_and_of_hookery_run_together(
        self, net: types.ModuleType, registry: HookRegistry, engine: str, target: str
    ) -> None:
        model, x = net.Model(), torch.ones(3)
        plain = model(x)
        put(registry, target, engine, [(HookType.AFTER, add_ten)])
        model.layer.register_forward_hook(lambda module, args, result: result + 100)
        model.register_forward_pre_hook(lambda module, args: (args[0] * 0,))
        assert torch.equal(model(x), plain * 0 + 1 + 110)

    def test_a_copy_of_an_instance_with_a_forward_of_its_own_runs_on_its_own_weights(
        self, net: types.ModuleType, registry: HookRegistry, engine: str
    ) -> None:
        put(registry, "net.Layer.forward", engine, [(HookType.AFTER, add_ten)])
        layer, x = net.Layer(), torch.ones(3)
        layer.forward = layer.forward
        assert torch.equal(layer(x), x + 10)
        copied = copy.deepcopy(layer)
        with torch.no_grad():
            copied.weight.fill_(5)
        assert torch.equal(copied(x), x * 5 + 10)
        assert torch.equal(layer(x), x + 10)
        assert torch.equal(saved_and_loaded(copied)(x), x * 5 + 10)

    def test_a_copy_of_a_model_runs_on_its_own_weights(
        self, net: types.ModuleType, registry: HookRegistry, engine: str
    ) -> None:
        put(registry, "net.Layer.forward", engine, [(HookType.AFTER, add_ten)])
        layer, x = net.Layer(), torch.ones(3)
        for copied in (copy.deepcopy(layer), saved_and_loaded(layer)):
            with torch.no_grad():
                copied.weight.fill_(5)
            assert torch.equal(copied(x), x * 5 + 10)
        assert torch.equal(layer(x), x + 10)

    def test_an_instance_that_holds_the_hooked_function_is_saved(
        self, net: types.ModuleType, registry: HookRegistry, engine: str
    ) -> None:
        put(registry, "net.scale", engine, [(HookType.AFTER, add_ten)])
        model = net.Model()
        model.how = net.scale
        assert torch.equal(saved_and_loaded(model).how(torch.ones(3)), torch.full((3,), 12.0))

    def test_it_is_traced(self, net: types.ModuleType, registry: HookRegistry, engine: str) -> None:
        put(registry, "net.double", engine, [(HookType.AFTER, add_ten)])
        x = torch.ones(3)
        traced = torch.fx.symbolic_trace(net.caller_of_double)
        registry.revert()
        assert torch.equal(traced(x), x * 2 + 10 + 1)

    def test_scripting_a_caller_leaves_the_hooks_out(
        self, net: types.ModuleType, registry: HookRegistry, engine: str
    ) -> None:
        """A limit of torch.jit: it reads the source of the original, or finds none."""
        x = torch.ones(3)
        put(registry, "net.double", engine, [(HookType.AFTER, add_ten)])
        assert torch.equal(net.caller_of_double(x), x * 2 + 11)
        if engine == IN_PLACE:
            with pytest.raises(OSError, match="Can't get source"):
                torch.jit.script(net.caller_of_double)
        else:
            assert torch.equal(torch.jit.script(net.caller_of_double)(x), x * 2 + 1)

    def test_a_caller_that_was_scripted_before_leaves_the_hooks_out(
        self, net: types.ModuleType, registry: HookRegistry, engine: str
    ) -> None:
        """A limit of torch.jit: what was scripted is no Python any more."""
        x = torch.ones(3)
        scripted = torch.jit.script(net.caller_of_double)
        put(registry, "net.double", engine, [(HookType.AFTER, add_ten)])
        assert torch.equal(net.caller_of_double(x), x * 2 + 11)
        assert torch.equal(scripted(x), x * 2 + 1)

    def test_an_operator_that_is_made_of_a_hooked_function_runs_the_hooks(
        self, net: types.ModuleType, registry: HookRegistry, engine: str
    ) -> None:
        put(registry, "net.annotated", engine, [(HookType.AFTER, add_ten)])
        made = torch.library.custom_op(f"hookery_conformance::{engine}", net.annotated, mutates_args=())
        assert torch.equal(made(torch.ones(3)), torch.full((3,), 12.0))


def saved_and_loaded(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


class TestWraptUnderCompile:
    """Dynamo takes a proxy for what it proxies. Compiled code runs the hooks outside of the graph, or is refused."""

    @pytest.mark.parametrize(
        ("target", "use"),
        [
            ("net.scale", lambda net, x: net.scale(x)),
            ("net.scale", lambda net, x: net.scale(x, 2.0)),
            ("net.Tools.method", lambda net, x: net.tools.method(x)),
            ("net.Tools.of_class", lambda net, x: net.tools.of_class(x)),
            ("net.Tools.static", lambda net, x: net.Tools.static(x)),
            ("net.Layer.forward", lambda net, x: net.layer(x) * 2),
            ("net.cached", lambda net, x: x * net.cached(2)),
            ("net.tools", lambda net, x: net.tools(x)),
            ("net.twice", lambda net, x: net.twice(x)),
        ],
    )
    def test_compiled_code_runs_the_hooks_or_is_refused(
        self, net: types.ModuleType, registry: HookRegistry, target: str, use: Callable[[Any, Any], Any]
    ) -> None:
        x = torch.ones(3)
        plain = use(net, x)
        put(registry, target, WRAPT, [(HookType.AFTER, add_ten)])
        hooked = use(net, x)
        assert not torch.equal(hooked, plain)

        def caller(x: Any) -> Any:
            return use(net, x) + 0

        assert torch.equal(torch.compile(caller, backend="eager")(x), hooked)
        torch._dynamo.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported):
            torch.compile(caller, backend="eager", fullgraph=True)(x)

    def test_a_partial_is_taken_apart(self, net: types.ModuleType, registry: HookRegistry) -> None:
        x = torch.ones(3)
        put(registry, "net.half", "auto", [(HookType.AFTER, add_ten)])
        assert torch.equal(net.half(x), x * 0.5 + 10)
        assert torch.equal(torch.compile(lambda x: net.half(x) + 0, backend="eager")(x), x * 0.5)

    def test_a_hook_on_a_caller_of_c_functions_compiles(self, net: types.ModuleType, registry: HookRegistry) -> None:
        x = torch.ones(3)
        put(registry, "net.relu", "auto", [(HookType.AFTER, add_ten)])
        call, _ = compiled(lambda x: net.relu(x) + 0)
        assert torch.equal(call(x), x + 10)


@pytest.mark.parametrize("engine", [GENERATED, IN_PLACE])
def test_hooks_on_functions_of_torch_run_once_in_compiled_code_whatever_was_compiled_before(
    net: types.ModuleType, registry: HookRegistry, engine: str
) -> None:
    x = torch.ones(3)
    compiled(net.double)[0](x)

    def caller(x: Any) -> Any:
        return torch.nn.functional.relu(x) + 1

    put(registry, "torch.nn.functional.relu", engine, [(HookType.AFTER, add_ten)])
    assert torch.equal(caller(x), x + 11)
    assert torch.equal(compiled(caller)[0](x), x + 11)
    registry.revert()
    torch._dynamo.reset()
    assert torch.equal(compiled(caller)[0](x), x + 1)


def test_a_custom_operator_keeps_its_interface(modules: Modules, registry: HookRegistry) -> None:
    net = modules.load(
        "net",
        """
        import torch
        @torch.library.custom_op("hookery_conformance::thrice", mutates_args=())
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
