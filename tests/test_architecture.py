"""The arrows of the design, read from the source: lazy imports and imports for type checkers count too."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_LINES = 600
# A folder (or module) of the runtime imports only from those above it.
LAYERS = (
    "core",
    "platforms",
    "plugins",
    "config",
    "distributed",
    "mem_cache",
    "layers",
    "sampling",
    "models",
    "model_executor",
    "managers",
    "multimodal_gen",
    "entrypoints",
)
# Imports nothing of the runtime, and only the top may import it.
DATA = "assets"
DEVICE_MODULES = ("cuda", "npu", "xpu", "hpu", "mps", "musa")
# Other doors to a device, and ways to ask which platform this is instead of what it can do.
DEVICE_QUESTIONS = frozenset(
    {"accelerator", "get_device_module", "hip", "is_hip", "is_cpu", "is_rocm", "is_cuda_alike", "is_out_of_tree"}
    | {f"is_{module}" for module in DEVICE_MODULES}
)


def modules_under(root: Path, package: str) -> dict[str, Path]:
    """Every module of a package: dotted name and file."""
    found = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imports_of(name: str, path: Path, known: Iterable[str] = ()) -> Iterator[tuple[str, int]]:
    """The modules that a module imports anywhere in its code, by full dotted name, with the line.

    `from package import x` is an import of `package.x` where that is a module among `known`, else of `package`.
    """
    known = set(known)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = package.split(".")
                anchor = anchor[: len(anchor) - node.level + 1]
                base = ".".join([*anchor, *([base] if base else [])])
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield (submodule if submodule in known else base), node.lineno
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            argument = node.args[0] if node.args else None
            if (
                called in ("import_module", "__import__")
                and isinstance(argument, ast.Constant)
                and isinstance(argument.value, str)
            ):
                yield argument.value, node.lineno


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def forbidden_imports(root: Path) -> list[str]:
    """Where hookery imports torch or the runtime."""
    return [
        f"{path.relative_to(root)}:{line} imports {imported}"
        for name, path in modules_under(root, "hookery").items()
        for imported, line in imports_of(name, path)
        if is_within(imported, "torch") or is_within(imported, "runtime")
    ]


def wrong_arrows(root: Path) -> list[str]:
    """Where a part of the runtime imports from a part that is not above it."""
    modules = modules_under(root, "runtime")
    wrong = []
    for name, path in modules.items():
        parts = name.split(".")
        here = parts[1] if len(parts) > 1 else "__init__"
        if here not in (*LAYERS, DATA, "__init__", "__main__"):
            wrong.append(f"{path.relative_to(root)} belongs to no part of the design")
            continue
        for imported, line in imports_of(name, path, modules):
            if not is_within(imported, "runtime"):
                continue
            there = imported.split(".")[1] if "." in imported else "__init__"
            if not may_import(here, there):
                wrong.append(f"{path.relative_to(root)}:{line} imports {imported}")
    return wrong


def may_import(here: str, there: str) -> bool:
    if here == "__init__":
        return False
    if here == "__main__":
        return there == "entrypoints"
    if here == DATA:
        return there == DATA
    if there == DATA:
        return here == LAYERS[-1]
    return there in LAYERS and LAYERS.index(there) <= LAYERS.index(here)


def import_cycles(root: Path, package: str) -> list[list[str]]:
    """The import cycles among the modules of a package; what `import a.b` does to `a` itself is no arrow."""
    modules = modules_under(root, package)
    arrows = {
        name: {imported for imported, _ in imports_of(name, path, modules) if imported in modules and imported != name}
        for name, path in modules.items()
    }
    return sorted(sorted(group) for group in strongly_connected(arrows) if len(group) > 1)


def strongly_connected(arrows: Mapping[str, set[str]]) -> list[set[str]]:
    """The groups of nodes that reach each other (R. Tarjan, Depth-first search and linear graph algorithms, 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    groups: list[set[str]] = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        stack.append(node)
        for other in sorted(arrows[node]):
            if other not in order:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], order[other])
        if lowest[node] == order[node]:
            group = set()
            while node not in group:
                group.add(stack.pop())
            groups.append(group)

    for node in sorted(arrows):
        if node not in order:
            visit(node)
    return groups


def long_files(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)} has {lines} lines"
        for folder in ("hookery", "runtime", "benchmarks", "tests")
        for path in sorted((root / folder).rglob("*.py"))
        if (lines := len(path.read_text().splitlines())) > MAX_LINES
    ]


def device_mentions(root: Path) -> list[str]:
    """Where code outside `runtime/platforms` names a device module of torch or a device by a literal, or asks which
    platform it runs on."""
    found = []
    for name, path in modules_under(root, "runtime").items():
        if is_within(name, "runtime.platforms"):
            continue
        tree = parse(path)
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            mention = device_mention(node) if id(node) not in docstrings else None
            if mention is None:
                mention = device_question(node)
            if mention is not None:
                found.append(f"{path.relative_to(root)}:{getattr(node, 'lineno', 0)} mentions {mention}")
        for imported, line in imports_of(name, path):
            if any(is_within(imported, f"torch.{device}") for device in DEVICE_MODULES):
                found.append(f"{path.relative_to(root)}:{line} imports {imported}")
    return found


def early_platforms(root: Path) -> list[str]:
    """Where the platform is bound at import: a hook on the name, or a test's stand-in for it, would not take there."""
    return [
        f"{name}:{node.lineno}"
        for name, path in modules_under(root, "runtime").items()
        for node in parse(path).body
        if isinstance(node, ast.ImportFrom) and node.module == "runtime.platforms"
        if "current_platform" in [alias.name for alias in node.names]
    ]


def device_mention(node: ast.AST) -> str | None:
    if isinstance(node, ast.Attribute) and node.attr in DEVICE_MODULES:
        # torch.cuda and tensor.cuda() alike; an attribute of one's own that happens to be called so is one as well.
        return ast.unparse(node)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        kind = node.value.partition(":")[0]
        if kind in DEVICE_MODULES:
            return repr(node.value)
    if isinstance(node, ast.alias) and node.name in DEVICE_MODULES:
        return f"import of {node.name}"
    return None


def device_question(node: ast.AST) -> str | None:
    if isinstance(node, ast.Attribute) and node.attr in DEVICE_QUESTIONS:
        return ast.unparse(node)
    if isinstance(node, (ast.Name, ast.alias)):
        name = node.id if isinstance(node, ast.Name) else node.name
        return name if name in DEVICE_QUESTIONS else None
    # getattr(platform, "is_cuda")
    if isinstance(node, ast.Constant) and node.value in DEVICE_QUESTIONS - {"accelerator", "hip"}:
        return repr(node.value)
    return None


class TestTheHouse:
    def test_hookery_knows_neither_torch_nor_the_runtime(self) -> None:
        assert forbidden_imports(ROOT) == []

    def test_every_part_of_the_runtime_imports_only_from_those_above_it(self) -> None:
        assert wrong_arrows(ROOT) == []

    @pytest.mark.parametrize("package", ["hookery", "runtime"])
    def test_no_modules_import_each_other_in_a_circle(self, package: str) -> None:
        assert import_cycles(ROOT, package) == []

    def test_no_file_is_two_ideas(self) -> None:
        assert long_files(ROOT) == []

    def test_devices_are_named_by_platforms_alone(self) -> None:
        assert device_mentions(ROOT) == []

    def test_the_platform_is_looked_up_when_it_is_used(self) -> None:
        assert early_platforms(ROOT) == []

    def test_there_is_something_to_read(self) -> None:
        assert len(modules_under(ROOT, "hookery")) >= 10
        assert {name.split(".")[1] for name in modules_under(ROOT, "runtime") if "." in name} >= {"core", "managers"}


class TestTheRulesThemselves:
    """Each rule finds what it is for in a tree that breaks it, and nothing in one that does not."""

    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        for folder in ("hookery", "runtime", *(f"runtime/{layer}" for layer in LAYERS if layer != "config")):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "__init__.py").write_text('"""Nothing of torch.cuda here."""\n')
        (tmp_path / "runtime" / "config.py").write_text("from runtime.core import __name__\n")
        return tmp_path

    def test_a_clean_tree_passes_them_all(self, tree: Path) -> None:
        (tree / "runtime/managers/a.py").write_text(
            "import torch\nfrom runtime import config\nfrom runtime.core import x\nfrom . import b\n"
        )
        (tree / "runtime/managers/b.py").write_text("from runtime.layers import y\n")
        (tree / "runtime/platforms/cuda.py").write_text("import torch\ntorch.cuda.synchronize()\nNAME = 'cuda'\n")
        (tree / "runtime/__main__.py").write_text("from runtime.entrypoints import main\n")
        (tree / "hookery/a.py").write_text("import wrapt\nfrom hookery import b\n")
        (tree / "hookery/b.py").write_text("")
        assert forbidden_imports(tree) == []
        assert wrong_arrows(tree) == []
        assert import_cycles(tree, "hookery") == import_cycles(tree, "runtime") == []
        assert long_files(tree) == []
        assert device_mentions(tree) == []
        assert early_platforms(tree) == []

    def test_a_platform_that_is_bound_early_is_found(self, tree: Path) -> None:
        (tree / "runtime/layers/bad.py").write_text("from runtime.platforms import SRTPlatform, current_platform\n")
        (found,) = early_platforms(tree)
        assert found == "runtime.layers.bad:1"

    @pytest.mark.parametrize(
        "source",
        [
            "import torch",
            "import torch.nn as nn",
            "from torch import nn",
            "def f():\n    import runtime.core",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from runtime.core import x",
            "try:\n    import torch\nexcept ImportError:\n    torch = None",
            "import importlib\nimportlib.import_module('torch.nn')",
        ],
    )
    def test_hookery_importing_torch_or_the_runtime_is_found(self, tree: Path, source: str) -> None:
        (tree / "hookery/bad.py").write_text(source)
        (found,) = forbidden_imports(tree)
        assert found.startswith("hookery/bad.py:")

    @pytest.mark.parametrize(
        ("path", "source"),
        [
            ("runtime/core/bad.py", "from runtime.managers import x"),
            ("runtime/core/bad.py", "from runtime import config"),
            ("runtime/core/bad.py", "import runtime.platforms"),
            ("runtime/layers/bad.py", "def f():\n    from runtime.models.llama import Llama"),
            ("runtime/layers/bad.py", "from ..sampling import x"),
            ("runtime/layers/deep/bad.py", "from ...sampling import x"),
            ("runtime/core/bad.py", "from runtime.assets import x"),
            ("runtime/assets/bad.py", "from runtime.core import x"),
            ("runtime/__init__.py", "from runtime.core import x"),
            ("runtime/__main__.py", "from runtime.managers import x"),
            ("runtime/core/bad.py", "import runtime"),
            ("runtime/unheard_of/bad.py", ""),
        ],
    )
    def test_an_arrow_that_points_down_is_found(self, tree: Path, path: str, source: str) -> None:
        (tree / path).parent.mkdir(exist_ok=True)
        (tree / path).write_text(source)
        (found,) = wrong_arrows(tree)
        assert found.startswith(path)

    @pytest.mark.parametrize(
        "sources",
        [
            {"a": "import hookery.b", "b": "from hookery.a import x"},
            {"a": "from hookery import b", "b": "from . import a"},
            {"a": "def f():\n    from hookery.b import x", "b": "import hookery.c", "c": "from .a import f"},
        ],
    )
    def test_a_circle_is_found_even_if_it_is_lazy(self, tree: Path, sources: dict[str, str]) -> None:
        for name, source in sources.items():
            (tree / f"hookery/{name}.py").write_text(source)
        assert import_cycles(tree, "hookery") == [[f"hookery.{name}" for name in sorted(sources)]]

    def test_a_circle_through_a_package_and_what_is_in_it_is_found(self, tree: Path) -> None:
        (tree / "runtime/core/__init__.py").write_text("from runtime.core.a import x")
        (tree / "runtime/core/a.py").write_text("from runtime.core import y")
        assert import_cycles(tree, "runtime") == [["runtime.core", "runtime.core.a"]]

    def test_a_file_that_is_too_long_is_found(self, tree: Path) -> None:
        (tree / "hookery/long.py").write_text("x = 1\n" * (MAX_LINES + 1))
        (tree / "hookery/just_right.py").write_text("x = 1\n" * MAX_LINES)
        assert long_files(tree) == [f"hookery/long.py has {MAX_LINES + 1} lines"]

    @pytest.mark.parametrize(
        "source",
        [
            "import torch\ntorch.cuda.synchronize()",
            "import torch\ntorch.npu.current_device()",
            "def f(tensor): return tensor.cuda()",
            "device = 'cuda'",
            "device = 'cuda:0'",
            "device = f'cuda:{index}'",
            "from torch import cuda",
            "import torch.cuda",
            "import torch.cuda.nvtx as nvtx",
            "getattr(torch, 'cuda').synchronize()",
            "from runtime.platforms import current_platform as p\nif p.is_cuda(): pass",
            "from runtime.platforms import current_platform as p\nif p.is_out_of_tree(): pass",
            "from runtime import platforms\nx = platforms.current_platform.is_cuda_alike",
            "def f(tensor): return tensor.is_mps",
            "def f(platform): return getattr(platform, 'is_rocm')()",
            "from somewhere import is_npu",
            "if is_hip(): pass",
            "import torch\ntorch.version.hip",
            "import torch\ntorch.accelerator.synchronize()",
            "import torch\ntorch.get_device_module().synchronize()",
        ],
    )
    def test_a_device_named_outside_platforms_is_found(self, tree: Path, source: str) -> None:
        (tree / "runtime/managers/bad.py").write_text(source)
        found = device_mentions(tree)
        assert found
        assert all(mention.startswith("runtime/managers/bad.py:") for mention in found)

    def test_documentation_may_speak_of_devices(self, tree: Path) -> None:
        (tree / "runtime/managers/good.py").write_text(
            '"""cuda"""\nclass A:\n    "cuda"\n    def f(self):\n        "cuda"\nREASON = "runs on cuda or cpu"\n'
        )
        assert device_mentions(tree) == []
