"""Who holds an object: containers, class dictionaries, default arguments, closure cells, partials, bound methods, …

The garbage collector is asked who refers to the objects, all of them at once, and then who refers to those, until a
module, a class or a function is reached that gives the holder an address. Everything is looked at by its exact type, so
that nobody's code runs. What only running functions hold in their local variables has no address and is left out.
"""

from __future__ import annotations

import gc
import heapq
import itertools
import operator
import sys
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any

from hookery import raw
from hookery.reach import Entry, Holder, is_internal

MOST_STEPS = 8  # from a holder up to what gives it an address
MOST_WIDE = 4000  # objects that are followed upward at each of these steps
# Asking the collector for the referrers of many objects compares every reference with each of them; from here on
# looking at every object once is faster.
MANY = 300

CellType = types.CellType
_SUSPENDED = (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)
CachedFunction = type(lru_cache(maxsize=0)(len))
_PASSED_OVER = (
    types.CodeType,
    types.TracebackType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.GenericAlias,
    type(int | str),
)
# Where a class is named rather than used.
_MENTIONS = ("__annotations__", "__orig_bases__", "__objclass__", "__parameters__")
# What other patching libraries keep in order to put it back.
_OTHER_PATCHERS = ("unittest.mock", "mock", "_pytest.monkeypatch", "pytest_mock")


class Item(Holder):
    """An element of a list or a deque, or the value of a dictionary's key."""

    def __init__(self, address: str, container: Any, key: Any) -> None:
        super().__init__(address)
        self.container, self.key = container, key

    def exchange(self, old: Any, new: Any) -> bool:
        try:
            if self.container[self.key] is not old:
                return False
            self.container[self.key] = new
        except Exception:  # noqa: BLE001  (the key is gone; or its own __hash__ or __eq__ failed)
            return False
        return True


class ClassAttribute(Holder):
    """An attribute in the namespace of a class: an alias, or a property that was copied."""

    def __init__(self, address: str, owner: type, name: str) -> None:
        super().__init__(address)
        self.owner, self.name = owner, name

    def exchange(self, old: Any, new: Any) -> bool:
        if raw.class_namespace(self.owner).get(self.name) is not old:
            return False
        try:
            setattr(self.owner, self.name, new)
        except Exception:  # noqa: BLE001  (a metaclass may refuse in any way it likes)
            return False
        return raw.class_namespace(self.owner).get(self.name) is new

    def holds(self, thing: Any) -> bool:
        return raw.class_namespace(self.owner).get(self.name) is thing


class Default(Holder):
    """A default argument that may be given by position. With its last element the very tuple of before returns."""

    def __init__(self, address: str, function: types.FunctionType, position: int, before: tuple[Any, ...]) -> None:
        super().__init__(address)
        self.function, self.position, self.before = function, position, before

    def exchange(self, old: Any, new: Any) -> bool:
        now = self.function.__defaults__
        if now is None or self.position >= len(now) or now[self.position] is not old:
            return False
        after = (*now[: self.position], new, *now[self.position + 1 :])
        as_before = len(after) == len(self.before) and all(map(operator.is_, after, self.before))
        self.function.__defaults__ = self.before if as_before else after
        return True


class Cell(Holder):
    """A closure cell: what a nested function sees of the function around it."""

    def __init__(self, address: str, cell: types.CellType) -> None:
        super().__init__(address)
        self.cell = cell

    def exchange(self, old: Any, new: Any) -> bool:
        if _contents(self.cell) is not old:
            return False
        self.cell.cell_contents = new
        return True


class Fixed(Holder):
    """What cannot be rebound: an element of a tuple or a set, a partial, a bound method. ``why`` says which."""

    def __init__(self, address: str, why: str) -> None:
        super().__init__(address)
        self.why = why

    def exchange(self, old: Any, new: Any) -> bool:
        return False


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


class _Link:
    """``parent`` refers to a node: as ``key`` of its dictionary or its attributes, or in the way ``suffix`` writes.

    With ``as_namespace`` set the node is the dictionary of the parent's attributes.
    """

    __slots__ = ("as_namespace", "key", "parent", "suffix")

    def __init__(self, parent: _Node, suffix: str, key: Any, as_namespace: bool) -> None:
        self.parent, self.suffix, self.key, self.as_namespace = parent, suffix, key, as_namespace


class _Node:
    """An object on the way from a holder up to a name."""

    __slots__ = ("home", "links", "name", "root", "thing")

    def __init__(self, thing: Any) -> None:
        self.thing = thing
        self.links: list[_Link] = []
        self.root = False  # it has an address of its own
        self.name = ""  # that address, or what it is called where nothing better is found
        self.home = 0  # the identity of the globals of the module that it belongs to


class _Address:
    """How a node is written; ``namespace`` says that its elements are written as attributes."""

    __slots__ = ("namespace", "text")

    def __init__(self, text: str, *, namespace: bool = False) -> None:
        self.text, self.namespace = text, namespace

    def of(self, link: _Link) -> str:
        """The address of what ``link`` leads down to."""
        if self.namespace and type(link.key) is str and link.suffix != KEYS:
            return f"{self.text}.{link.key}"
        return self.text + link.suffix


def find(
    objects: Iterable[Any], *, ours: Collection[int] = (), spared: Mapping[int, Collection[int]] | None = None
) -> dict[int, list[Holder]]:
    """Who holds each of ``objects``, by the identity of the object, each holder once and sorted by address.

    Args:
        ours: identities of objects whose references do not count.
        spared: for the identity of an object, those of the globals of modules that may hold it.
    """
    search = _Search(list({id(thing): thing for thing in objects}.values()), ours, spared or {})
    search.climb()
    return search.holders()


class _Search:
    __slots__ = ("modules", "nodes", "ours", "spared", "starts")

    def __init__(self, objects: list[Any], ours: Collection[int], spared: Mapping[int, Collection[int]]) -> None:
        self.spared = spared
        self.modules = raw.module_namespaces()
        self.starts = [self._node(thing) for thing in objects]
        self.nodes = {id(node.thing): node for node in self.starts}
        self.ours = {*ours, id(objects), *map(id, self.modules.values())}

    def climb(self) -> None:
        """Ask for referrers, level by level, until every holder has an address or there is nobody left to ask."""
        level = self.starts
        for _ in range(MOST_STEPS):
            if not level:
                return
            wanted = {id(node.thing): node for node in level}
            things = [node.thing for node in level]
            level = []
            for parent in _referrers(things):
                if id(parent) in self.ours or parent is things or _is_passed_over(parent):
                    continue
                node = self.nodes.get(id(parent)) or self._node(parent)
                if self._link(node, wanted) and id(parent) not in self.nodes:
                    self.nodes[id(parent)] = node
                    if not node.root:
                        level.append(node)
            del level[MOST_WIDE:]
            if self._all_named():
                return

    def _node(self, thing: Any) -> _Node:
        """A node with the name that leads to it, if it is the globals of a module, a class, a function or the like."""
        node = _Node(thing)
        if id(thing) in self.modules:
            node.root, node.name, node.home = True, self.modules[id(thing)][0], id(thing)
        elif raw.is_module(thing):
            namespace = raw.namespace(thing) or {}
            node.root, node.name, node.home = True, str(namespace.get("__name__")), id(namespace)
        elif raw.is_class(thing):
            node.root, node.name = True, raw.class_name(thing)
            node.home = id(raw.namespace(sys.modules.get(raw.class_module(thing))))
        elif type(thing) is types.FunctionType:
            node.name, node.home = f"{thing.__module__}.{thing.__qualname__}", id(thing.__globals__)
            node.root = type(thing.__module__) is str and raw.leads_to(thing.__module__, thing.__qualname__, thing)
        elif type(thing) in _SUSPENDED:
            node.root, node.name = True, _name_of_suspended(thing)
        return node

    @staticmethod
    def _link(node: _Node, wanted: dict[int, _Node]) -> bool:
        """Note in which ways ``node`` refers to what is wanted; whether it does in any that counts."""
        linked = False
        for thing, suffix, key, as_namespace in _references(node.thing):
            child = wanted.get(id(thing))
            if child is not None and child is not node:
                child.links.append(_Link(node, suffix, key, as_namespace))
                linked = True
        if not linked and _keeps_to_itself(node.thing):
            for thing in gc.get_referents(node.thing):
                child = wanted.get(id(thing))
                if child is not None and thing is not type(node.thing):
                    child.links.append(_Link(node, f" (inside this {type(node.thing).__name__})", None, False))
                    linked = True
        return linked

    def _children(self) -> dict[_Node, list[tuple[_Node, _Link]]]:
        children: dict[_Node, list[tuple[_Node, _Link]]] = {}
        for child in self.nodes.values():
            for link in child.links:
                children.setdefault(link.parent, []).append((child, link))
        return children

    def _all_named(self) -> bool:
        """Whether something that has an address of its own leads to every holder."""
        children = self._children()
        waiting = [node for node in self.nodes.values() if node.root]
        named = set(waiting)
        while waiting:
            for child, _ in children.get(waiting.pop(), ()):
                if child not in named:
                    named.add(child)
                    waiting.append(child)
        return all(link.parent in named for start in self.starts for link in start.links)

    def _addresses(self, spared: Collection[int]) -> dict[_Node, _Address]:
        """The shortest way to write each node that not only local variables, or what is spared, lead to.

        Dijkstra's algorithm from the nodes that have an address of their own, the length of the text as distance.
        """
        children = self._children()
        found: dict[_Node, _Address] = {}
        count = itertools.count()
        nodes = [node for node in self.nodes.values() if node.home not in spared]
        rooted = [node for node in nodes if node.root]
        # A function that nothing else leads to is called by its name, though the name leads elsewhere.
        called = [node for node in nodes if node.name and node.links and not node.root]
        for beginnings in (rooted, called):
            heap = []
            for node in beginnings:
                address = _Address(node.name, namespace=id(node.thing) in self.modules)
                heap.append((len(address.text), address.text, next(count), node, address))
            heapq.heapify(heap)
            while heap:
                _, _, _, node, address = heapq.heappop(heap)
                if node in found or node.home in spared:
                    continue
                found[node] = address
                for child, link in children.get(node, ()):
                    if child not in found and not child.root:
                        below = _Address(address.of(link), namespace=link.as_namespace)
                        heapq.heappush(heap, (len(below.text), below.text, next(count), child, below))
        return found

    def holders(self) -> dict[int, list[Holder]]:
        found: dict[int, list[Holder]] = {}
        by_spared: dict[frozenset[int], dict[_Node, _Address]] = {}
        for start in self.starts:
            spared = frozenset(self.spared.get(id(start.thing), ()))
            if spared not in by_spared:
                by_spared[spared] = self._addresses(spared)
            addresses = by_spared[spared]
            holders: dict[str, Holder] = {}
            for link in start.links:
                if link.parent in self.starts and type(link.parent.thing) in (staticmethod, classmethod, property):
                    continue  # who holds that one is listed for it
                above = addresses.get(link.parent)
                if above is not None:
                    for holder in self._at(start, link, above, addresses):
                        holders.setdefault(holder.address, holder)
            found[id(start.thing)] = [holders[address] for address in sorted(holders)]
        return found

    def _at(self, start: _Node, link: _Link, above: _Address, addresses: dict[_Node, _Address]) -> Iterator[Holder]:
        """The holder, or holders, that ``link`` is."""
        node, thing, address = link.parent, link.parent.thing, above.of(link)
        owner = next((up.parent.thing for up in node.links if up.as_namespace), None)
        if type(thing) is CellType:
            if not _is_super_cell(node):
                yield Cell(address, thing)
        elif node.root and id(thing) in self.modules:
            yield Entry(address, link.key, thing)
        elif link.suffix == KEYS or type(thing) in (set, frozenset):
            yield Fixed(address, _why(thing))
        elif type(thing) is dict and owner is None:
            yield Item(address, thing, link.key)
        elif type(thing) is dict:
            yield from _attribute(address, owner, thing, link.key)
        elif type(thing) in (list, deque, OrderedDict, defaultdict):
            yield Item(address, thing, link.key)
        elif type(thing) is tuple:
            yield from _in_tuple(node, link, address, addresses)
        else:
            namespace = raw.namespace(thing)
            if namespace is not None and type(link.key) is str and namespace.get(link.key) is start.thing:
                yield from _attribute(address, thing, namespace, link.key)
            else:
                yield Fixed(address, _why(thing))


def _in_tuple(node: _Node, link: _Link, address: str, addresses: dict[_Node, _Address]) -> Iterator[Holder]:
    functions = [up.parent for up in node.links if up.suffix == ".__defaults__" and up.parent in addresses]
    for function in functions:
        of_default = f"{addresses[function].text}.__defaults__{link.suffix}"
        yield Default(of_default, function.thing, link.key, node.thing)
    if not functions:
        yield Fixed(address, _why(node.thing))


KEYS = ".keys()"


def _is_super_cell(cell: _Node) -> bool:
    """Whether it is the cell by which ``super()`` in the methods of a class finds that class."""
    for closure in cell.links:
        for function in closure.parent.links:
            if function.suffix == ".__closure__":
                return bool(function.parent.thing.__code__.co_freevars[closure.key] == "__class__")
    return False


def _attribute(address: str, owner: Any, namespace: dict[str, Any], name: str) -> Iterator[Holder]:
    """What an attribute is, as a holder: of a class, a function or an instance."""
    kind = type(owner)
    module = raw.class_module(kind)
    if raw.is_class(owner):
        yield ClassAttribute(address, owner, name)
    elif name == "_torchdynamo_orig_callable":
        yield Fixed(address, "compiled by torch.compile before it was hooked")
    elif kind.__name__ == "ScriptFunction":
        yield Fixed(address, "scripted by torch.jit before it was hooked")
    elif kind is types.FunctionType and name == "__wrapped__":
        return  # for introspection; what the function calls is in its closure
    elif module in _OTHER_PATCHERS:
        yield Fixed(address, "another patching library keeps it to put it back")
    elif kind is CachedFunction:
        yield Fixed(address, _why(owner))
    else:
        yield Item(address, namespace, name)


def _why(thing: Any) -> str:
    return {
        types.MethodType: "a bound method cannot be changed",
        partial: "a functools.partial cannot be changed",
        tuple: "a tuple cannot be changed",
        set: "an element of a set has no place of its own",
        frozenset: "a frozenset cannot be changed",
        dict: "it is the key of a dictionary",
        CachedFunction: "functools.lru_cache has it",
    }.get(type(thing), f"a {type(thing).__name__} is not changed")


def _referrers(things: list[Any]) -> list[Any]:
    if len(things) < MANY:
        return gc.get_referrers(*things)
    wanted = set(map(id, things))
    return [found for found in gc.get_objects() if not wanted.isdisjoint(map(id, _referents(found)))]


def _referents(thing: Any) -> list[Any]:
    # A module shows its dictionary. To ask the collector would break asyncio: the state of _asyncio in CPython 3.12 has
    # freed objects in it, which come to life, die once more, and make a list without an end.
    return [raw.namespace(thing)] if raw.is_module(thing) else gc.get_referents(thing)


def _is_passed_over(thing: Any) -> bool:
    kind = type(thing)
    if kind in _PASSED_OVER:
        return True
    if kind is types.FrameType:
        return sys.version_info >= (3, 11)  # before, what a suspended generator holds is held by its frame
    if kind is types.FunctionType:
        return _is_hookery(thing.__globals__.get("__name__"))
    module = raw.class_module(kind)
    return module == "typing" or _is_hookery(module)


def _is_hookery(module: Any) -> bool:
    return type(module) is str and (module == "hookery" or module.startswith("hookery."))


def _keeps_to_itself(thing: Any) -> bool:
    """Whether it may hold something in a way that Python does not show: an instance of a C type."""
    kind = type(thing)
    return not (kind in _BY_TYPE or kind in _SUSPENDED or raw.is_class(thing) or raw.is_module(thing))


_Reference = tuple[Any, str, Any, bool]  # what is referred to, the suffix of its address, its key, is it a namespace


def _references(thing: Any) -> Iterator[_Reference]:
    """What ``thing`` refers to, and how that is written behind the address of ``thing``."""
    known = _BY_TYPE.get(type(thing))
    if known is not None:
        yield from known(thing)
    elif raw.is_class(thing):
        yield raw.bases(thing), ".__bases__", None, False
        for found in gc.get_referents(thing):
            if type(found) is dict:
                yield found, "", None, True
    elif raw.is_module(thing):
        yield raw.namespace(thing), "", None, True
    elif type(thing) in _SUSPENDED:
        yield from _suspended(thing)
    else:
        yield from _instance(thing)


def _dict(thing: dict[Any, Any]) -> Iterator[_Reference]:
    for key, value in list(thing.items()):
        if type(key) is not str:
            yield key, KEYS, None, False
        elif key in _MENTIONS or is_internal(key):
            continue
        yield value, f"[{_key(key)}]", key, False


def _sequence(thing: Any) -> Iterator[_Reference]:
    for position, value in enumerate(list(thing)):
        yield value, f"[{position}]", position, False


def _set(thing: Any) -> Iterator[_Reference]:
    for value in list(thing):
        yield value, "{...}", None, False


def _cell(thing: types.CellType) -> Iterator[_Reference]:
    yield _contents(thing), "", None, False


def _frame(thing: types.FrameType) -> Iterator[_Reference]:
    for name, value in list(thing.f_locals.items()):
        yield value, f" (suspended, local variable {name!r})", None, False


def _function(thing: types.FunctionType) -> Iterator[_Reference]:
    yield thing.__defaults__, ".__defaults__", None, False
    yield thing.__kwdefaults__, ".__kwdefaults__", None, False
    yield thing.__closure__, ".__closure__", None, False
    yield thing.__dict__, "", None, True


def _suspended(thing: Any) -> Iterator[_Reference]:
    frame = _frame_of(thing)
    if frame is not None:
        yield frame, "", None, False
        yield from _frame(frame)


def _frame_of(thing: Any) -> Any:
    """The frame of a generator or a coroutine that is suspended; ``None`` while it runs and after it has ended."""
    if type(thing) is types.GeneratorType:
        return None if thing.gi_running else thing.gi_frame
    if type(thing) is types.CoroutineType:
        return None if thing.cr_running else thing.cr_frame
    return None if thing.ag_running else thing.ag_frame


def _name_of_suspended(thing: Any) -> str:
    frame = _frame_of(thing)
    module = None if frame is None else frame.f_globals.get("__name__")
    return f"{module}.{thing.__qualname__}" if type(module) is str else str(thing.__qualname__)


def _instance(thing: Any) -> Iterator[_Reference]:
    namespace = raw.namespace(thing)
    if namespace is not None:
        yield namespace, "", None, True
        for name, value in list(namespace.items()):  # the values of an instance may lie in no dictionary
            if type(name) is str:
                yield value, f".{name}", name, False
    for name, value in raw.slots(thing):
        yield value, f".{name}", name, False


def _parts(*names: str) -> Callable[[Any], Iterator[_Reference]]:
    def parts(thing: Any) -> Iterator[_Reference]:
        for name in names:
            yield getattr(thing, name), f".{name}", None, False
        namespace = raw.namespace(thing)
        if namespace is not None:
            yield namespace, "", None, True

    return parts


_BY_TYPE: dict[type, Callable[[Any], Iterator[_Reference]]] = {
    types.FunctionType: _function,
    dict: _dict,
    OrderedDict: _dict,
    defaultdict: _dict,
    tuple: _sequence,
    list: _sequence,
    deque: _sequence,
    set: _set,
    frozenset: _set,
    CellType: _cell,
    types.FrameType: _frame,
    types.MethodType: _parts("__func__", "__self__"),
    partial: _parts("func", "args", "keywords"),
    staticmethod: _parts("__func__"),
    classmethod: _parts("__func__"),
    property: _parts("fget", "fset", "fdel"),
    CachedFunction: _parts("__wrapped__"),
}


def _key(key: Any) -> str:
    """A dictionary's key as a person writes it, without asking the key."""
    kind = type(key)
    if kind in (str, bytes, int, float, bool, type(None)):
        return repr(key)
    if kind is tuple:
        return f"({', '.join(map(_key, key))}{',' if len(key) == 1 else ''})"
    if raw.is_class(key):
        return raw.class_name(key)
    if kind is types.FunctionType:
        return f"{key.__module__}.{key.__qualname__}"
    name = (raw.namespace(key) or {}).get("_name_")  # a member of an enumeration
    return f"{kind.__name__}.{name}" if type(name) is str else f"<{kind.__name__}>"
