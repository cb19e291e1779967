"""The manifest: the hooks and plugins of one process as plain data, and applied in another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hookery import HookRegistry, HookSource, HookType, HookWarning, load_plugins
from hookery.manifest import Manifest
from tests.hookery.support import Modules, start_python

SHOP = "def price(item): return item\ndef cost(item): return item"
SHOP_HOOKS = """
def loud(result, item): return result + "!"
def asking(result, item): return result + "?"
def around(original_fn, item): return "(" + original_fn(item) + ")"
"""


@pytest.fixture
def modules_with_shop(modules: Modules) -> Modules:
    modules.write(shop=SHOP, shop_hooks=SHOP_HOOKS)
    return modules


def hooked(registry: HookRegistry, modules: Modules) -> Manifest:
    hooks = modules.load("shop_hooks")
    registry.register("shop.price", hooks.asking, HookType.AFTER, priority=2, on_error="warn", reason="to ask")
    registry.register("shop:price", hooks.around, HookType.AROUND, engine="wrapt", versions=None, count=True)
    registry.register("shop.cost", hooks.loud, HookType.AFTER, source=HookSource("mine", "dist", "1"))
    registry.apply_hooks()
    return Manifest.of(registry)


def test_it_is_plain_data_that_survives_json(modules_with_shop: Modules, registry: HookRegistry) -> None:
    manifest = hooked(registry, modules_with_shop)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest
    assert not manifest.empty
    assert Manifest.of(HookRegistry()).empty


def test_it_is_applied_with_all_options_in_another_registry(modules_with_shop: Modules, registry: HookRegistry) -> None:
    manifest = hooked(registry, modules_with_shop)
    before = [record.to_dict() for record in registry.applied_hooks()]
    registry.reset()
    other = HookRegistry()
    try:
        assert manifest.apply(other) == []
        shop = modules_with_shop.load("shop")
        assert (shop.price("tea"), shop.cost("tea")) == ("(tea)?", "tea!")
        after = [record.to_dict() for record in other.applied_hooks()]
        for record in (*before, *after):
            record.update(order=0, ran=None, calls=None, state="", detail="", engine=None, engine_reason="")
        assert after == before
        assert manifest.apply(other) == [], "applied again it changes nothing"
        assert len(other.applied_hooks()) == 3
    finally:
        other.reset()


def test_the_order_is_that_of_the_manifest_whatever_was_there_before(
    modules_with_shop: Modules, registry: HookRegistry
) -> None:
    hooks = modules_with_shop.load("shop_hooks")
    registry.register("shop.price", hooks.loud, HookType.AFTER)
    registry.register("shop.price", hooks.asking, HookType.AFTER)
    registry.apply_hooks()
    manifest = Manifest.of(registry)
    registry.reset()
    shop = modules_with_shop.load("shop")
    registry.register("shop.price", hooks.asking, HookType.AFTER)
    registry.register("shop.price", hooks.loud, HookType.AFTER)
    registry.apply_hooks()
    assert shop.price("tea") == "tea?!"
    assert manifest.apply(registry) == []
    assert shop.price("tea") == "tea!?"


def test_hooks_of_one_name_keep_their_order_where_what_is_around_them_has_another(
    modules: Modules, registry: HookRegistry
) -> None:
    modules.write(
        shop=SHOP,
        code_hooks="def first(result, item): return result + '0'",
        closures="""
        import hookery
        def make(tag):
            def hook(result, item): return result + tag
            return hook
        for tag in "12":
            hookery.plugin_hook("shop.price", hookery.HookType.AFTER)(make(tag))
        """,
    )
    registry.register("shop.price", modules.load("code_hooks").first, HookType.AFTER)
    load_plugins(modules=["closures"], names=[], registry=registry)
    shop = modules.load("shop")
    assert shop.price("tea") == "tea012"
    manifest = Manifest.of(registry)
    registry.reset()
    load_plugins(modules=["closures"], names=[], registry=registry)  # plugins come first in a child process
    assert manifest.apply(registry) == []
    assert shop.price("tea") == "tea012"


def test_other_options_than_those_of_the_manifest_give_way(modules_with_shop: Modules, registry: HookRegistry) -> None:
    hooks, _ = modules_with_shop.load("shop_hooks"), modules_with_shop.load("shop")
    registry.register("shop.price", hooks.loud, HookType.AFTER, priority=7)
    registry.apply_hooks()
    manifest = Manifest.of(registry)
    registry.reset()
    registry.register("shop.price", hooks.loud, HookType.AFTER)
    registry.apply_hooks()
    assert manifest.apply(registry) == []
    assert [(record.priority, record.state) for record in registry.applied_hooks()] == [(7, "applied")]


def test_what_was_not_applied_yet_is_not_in_it(modules_with_shop: Modules, registry: HookRegistry) -> None:
    registry.register("shop.price", modules_with_shop.load("shop_hooks").loud, HookType.AFTER)
    assert Manifest.of(registry).hooks == ()


def test_hooks_that_only_a_plugin_can_make_again_travel_with_it(modules: Modules, registry: HookRegistry) -> None:
    modules.write(
        shop=SHOP,
        maker="""
        import hookery
        for mark in "12":
            hookery.plugin_hook("shop.price")(lambda result, item, mark=mark: result + mark)
        """,
    )
    shop = modules.load("shop")
    load_plugins(modules=["maker"], names=[], registry=registry)
    manifest = Manifest.from_json(Manifest.of(registry).to_json())
    assert [record.local for record in registry.applied_hooks()] == [None, None]
    assert [hook.local for hook in manifest.hooks] == [None, None]
    registry.reset()
    assert shop.price("tea") == "tea"
    assert manifest.apply(registry) == []
    assert shop.price("tea") == "tea12"
    assert list(registry.loaded_plugins) == [("", "maker")]


def test_each_part_that_fails_is_named_and_the_others_are_applied(modules: Modules, registry: HookRegistry) -> None:
    modules.write(
        shop=SHOP,
        good="def loud(result, item): return result + '!'",
        bad="def loud(result, item): return result + '?'",
        plugged="import hookery\nhookery.plugin_hook('shop.cost')(lambda result, item: result)",
        idle="",
    )
    shop = modules.load("shop")
    registry.register("shop.price", modules.load("bad").loud, HookType.AFTER)
    registry.register("shop.price", modules.load("good").loud, HookType.AFTER)
    load_plugins(modules=["plugged", "idle"], names=[], registry=registry)
    manifest = Manifest.of(registry)
    registry.reset()
    modules.forget()
    modules.write(
        bad="raise SystemExit('not here')", plugged="raise RuntimeError('nor here')", idle="raise ValueError('no')"
    )
    shop = modules.load("shop")
    with pytest.warns(HookWarning) as caught:
        failures = manifest.apply(registry)
    said = [str(failure) for failure in failures]
    assert said == [
        "plugin idle: plugin idle failed to load: ValueError: no",
        "AFTER bad:loud on shop.price: its module bad cannot be imported: SystemExit: not here",
        "AFTER plugged:<lambda> on shop.cost: plugin plugged failed to load: RuntimeError: nor here",
    ]
    assert len(caught) == 3
    assert shop.price("tea") == "tea!"


def test_a_target_that_is_missing_there_is_a_failure(modules_with_shop: Modules, registry: HookRegistry) -> None:
    registry.register("shop.cost", modules_with_shop.load("shop_hooks").loud, HookType.AFTER)
    modules_with_shop.load("shop")
    registry.apply_hooks()
    manifest = Manifest.of(registry)
    registry.reset()
    del modules_with_shop.load("shop").cost
    (failure,) = manifest.apply(registry, warn=False)
    assert "'shop' has no 'cost'" in failure.why
    assert failure.hook is not None
    assert failure.hook.function == "shop_hooks:loud"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"version": 99}', "no manifest of version 2 but of 99"),
        ("[]", "no manifest of version 2 but of 'list'"),
        ('{"version": 2, "plugins": [{}], "hooks": []}', "the manifest is damaged"),
        ('{"version": 2, "plugins": []}', "the manifest is damaged"),
        ('{"version": 2, "plugins": [], "hooks": [["shop.price", "after"]]}', "the manifest is damaged"),
        ('{"version": 2, "plugins": [], "hooks": [{"target": "shop.price"}]}', "a hook is a list of its fields"),
        ("nonsense", "Expecting value"),
    ],
)
def test_what_is_no_manifest_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Manifest.from_json(text)


def test_hooks_of_another_main_program_are_failures(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "one.py").write_text(
        "import hookery\nfrom hookery.manifest import Manifest\ndef loud(result, item): return result + '!'\n"
        "hookery.registry.register('shop.price', loud, hookery.HookType.AFTER)\nhookery.registry.apply_hooks()\n"
        "print(Manifest.of().to_json())\n"
    )
    written = start_python([str(tmp_path / "one.py")], path=[tmp_path]).stdout
    assert json.loads(written)["main_path"] == str(tmp_path / "one.py")
    (tmp_path / "other.py").write_text(
        "import hookery, multiprocessing, sys\nfrom hookery.manifest import Manifest\n"
        "def loud(result, item): return 'wrong'\n"
        "for failure in Manifest.from_json(sys.argv[1]).apply(hookery.registry, warn=False): print(failure)\n"
    )
    done = start_python([str(tmp_path / "other.py"), written], path=[tmp_path])
    assert "one.py, which is not that of this process" in done.stdout, done.stderr
