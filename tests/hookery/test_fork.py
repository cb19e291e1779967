"""A process that forks while its hooks are being changed: the child has a whole table and a lock of its own."""

from __future__ import annotations

import os

import pytest

from tests.hookery.support import run_python

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

HEAD = """
import os, sys, threading, time, types, warnings
warnings.filterwarnings("ignore", category=DeprecationWarning)  # forking with threads is the subject
import hookery
from hookery import HookRegistry, HookType, patch_table, patches

shop = types.ModuleType("shop")
exec("def price(item): return item\\ndef cost(item): return item", vars(shop))
sys.modules["shop"] = shop
originals = shop.price, shop.cost

def in_child(work):
    process = os.fork()
    if process == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
"""


def test_a_child_that_is_forked_while_another_thread_holds_the_lock_can_hook_and_revert() -> None:
    out = run_python(
        HEAD
        + """
import hookery.locking
hookery.locking.FORK_WAITS = 0.2
hookery.registry.register("shop.price", lambda result, item: result + "!", HookType.AFTER)
hookery.registry.apply_hooks()
held, done = threading.Event(), threading.Event()

def hold():
    with patches.lock:
        held.set()
        done.wait(60)

thread = threading.Thread(target=hold)
thread.start()
held.wait(60)

def work():
    assert shop.price("tea") == "tea!"
    hookery.registry.register("shop.cost", lambda result, item: result + "?", HookType.AFTER)
    hookery.registry.apply_hooks()
    assert shop.cost("tea") == "tea?"
    hookery.registry.reset()
    assert (shop.price, shop.cost) == originals

print(in_child(work))
done.set()
thread.join()
hookery.registry.reset()
print((shop.price, shop.cost) == originals)
"""
    )
    assert out == "0\nTrue\n"


def test_children_that_are_forked_while_threads_apply_and_revert_find_a_whole_table() -> None:
    out = run_python(
        HEAD
        + """
import wrapt  # a child that is forked while another thread imports it could never import it

stop = threading.Event()

def come_and_go(target):
    registry = HookRegistry()
    while not stop.is_set():
        registry.register(target, lambda result, item: result + "!", HookType.AFTER)
        registry.apply_hooks()
        registry.reset()
        time.sleep(0.001)

threads = [threading.Thread(target=come_and_go, args=(f"shop.{name}",)) for name in ("price", "cost")]
for thread in threads:
    thread.start()

def work():
    for name, original in zip(("price", "cost"), originals):
        assert getattr(shop, name)("tea") in ("tea", "tea!")
        standing = [patch for patch in patch_table.all_patches() if patch.target.attribute == name]
        assert (getattr(shop, name) is original) is (not standing), name
    registry = HookRegistry()
    registry.register("shop.price", lambda result, item: "mine", HookType.AFTER, priority=1)
    registry.apply_hooks()
    assert shop.price("tea") == "mine"

statuses = {in_child(work) for _ in range(40)}
stop.set()
for thread in threads:
    thread.join()
print(statuses, (shop.price, shop.cost) == originals)
"""
    )
    assert out == "{0} True\n"


def test_a_fork_inside_a_change_of_ones_own_does_not_lock_up() -> None:
    out = run_python(
        HEAD
        + """
def work():
    hookery.registry.register("shop.price", lambda result, item: result + "!", HookType.AFTER)
    hookery.registry.apply_hooks()
    assert shop.price("tea") == "tea!"

with patches.lock:
    print(in_child(work))
    print(patches.lock._is_owned())
print(patches.lock._is_owned())
"""
    )
    assert out == "0\nTrue\nFalse\n"
