"""The arrows of the code: gitd -> hooks -> storage, never up, and no cycle of modules."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

# By asyncio, aiohttp and others, under names of theirs; Python's own have two lines at each end.
CALLED_BY_OTHERS = {
    *("aclose", "emit", "feed_eof", "format_commands", "get_missing_message"),
    *("http_open", "https_open"),
}
ROOT = Path(__file__).parents[1]
PACKAGES = ("gitd", "hooks", "storage")
MAY_IMPORT = {
    "gitd": {"gitd", "hooks", "storage"},
    "hooks": {"hooks", "storage"},
    "storage": {"storage"},
}
# The command line speaks HTTP alone, reads durations and families of keys and lists its commands as
# the server's own commands do, and verifies by the store's own rules, which exist once (decision
# 0026); the git room knows nothing of sites, and its own command reads settings. Both write other
# people's words to terminals.
CLOSED = {
    "gitd.cli": {
        *("gitd.cli", "gitd.command_groups", "gitd.terminal", "gitd.durations", "gitd.families"),
        *("storage.proof", "storage.errors", "storage.audit_chain", "storage.counted"),
    },
    "gitd.git": {
        *("gitd.git", "gitd.terminal", "gitd.config", "gitd.errors"),
        *("hooks.http_server", "storage"),
    },
}
# The rooms of a package, and those that each imports from: see docs/architecture.md. What is in no
# room (errors, the words of the wire) imports from none.
ROOMS: dict[str, dict[str, set[str]]] = {
    "hooks.builds": {
        "sandbox": set(),
        "egress": set(),
        "profiles": {"sandbox"},
        "logs": {"profiles"},
        "sources": {"sandbox", "profiles"},
        "caches": {"sandbox", "profiles", "sources"},
        "control": {"egress", "profiles", "sources", "caches"},
        "slot": {"sandbox", "egress", "profiles", "logs", "sources", "caches"},
    },
    "hooks.deploys": {
        "web": set(),
        "processes": {"web"},
        "control": set(),
        "host": {"web", "processes"},
    },
}
# What verifies without a server stands on nothing that has one: no records, no repositories.
PROOF = {
    "storage.digest",
    "storage.envelope",
    "storage.errors",
    "storage.files",
    "storage.ids",
    "storage.layout",
    "storage.links",
    "storage.manifest",
    "storage.proof",
    "storage.proof_archive",
    "storage.provenance",
    "storage.release_statement",
    "storage.signing",
    "storage.source",
    "storage.statement",
    "storage.tar",
    "storage.trust",
    "storage.unpacked",
}
# The only places that know a foreign library's errors, or the environment of the process.
ONLY_IN = {
    "nacl": {"storage.signing", "storage.envelope", "storage.sealing"},
    "sqlite_utils": {"storage.records.db", "storage.records.migrations"},
}


@functools.cache
def modules() -> dict[str, ast.Module]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = ast.parse(path.read_text())
    return found


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top_level_imports(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(ast.Module([node], []))


def declared(tree: ast.Module) -> Iterator[str]:
    """Names that somebody must use: classes, functions, properties, and a module's own values."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            marks = [mark.id for mark in node.decorator_list if isinstance(mark, ast.Name)]
            if not node.decorator_list or "property" in marks:
                yield node.name
        elif isinstance(node, ast.ClassDef):
            yield node.name
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def used(tree: ast.Module) -> Iterator[str]:
    """Names that code uses; also by a text that is nothing but names: "gitd.__main__:main"."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()) | ast.Attribute(attr=name, ctx=ast.Load()):
                yield name
            case ast.keyword(arg=str(name)):
                yield name
            case ast.MatchClass(kwd_attrs=names):
                yield from names
            case ast.Constant(value=str(text)) if re.fullmatch(r"\w+([.:]\w+)*", text):
                yield from re.split("[.:]", text)


def test_nothing_is_there_that_only_tests_use() -> None:
    folders = (*PACKAGES, "bench", "examples")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    names = {name for path in paths for name in used(ast.parse(path.read_text()))}
    unused = {
        f"{module}: {name}"
        for module, tree in modules().items()
        for name in declared(tree)
        if name not in names and name not in CALLED_BY_OTHERS and not name.startswith("__")
    }
    assert unused == set()


def test_packages_import_downwards_only() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, tree in modules().items()
        for target in imports(tree)
        if target.split(".")[0] in PACKAGES
        and target.split(".")[0] not in MAY_IMPORT[name.split(".")[0]]
    ]
    assert wrong == []


def test_closed_rooms_import_nothing_else_of_ours() -> None:
    wrong = []
    for name, tree in modules().items():
        for room, allowed in CLOSED.items():
            if not f"{name}.".startswith(f"{room}."):
                continue
            for target in imports(tree):
                inside = any(f"{target}.".startswith(f"{known}.") for known in allowed)
                if target.split(".")[0] in PACKAGES and target != "gitd" and not inside:
                    wrong.append(f"{name} imports {target}")
    assert wrong == []


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_those_before_them_only(package: str) -> None:
    def room(module: str) -> str:
        """The room that a module of the package is in, if it is in one."""
        inside = module.startswith(f"{package}.") and module in trees
        first = module.removeprefix(f"{package}.").partition(".")[0]
        return first if inside and f"{package}.{first}" in packages else ""

    trees = modules()
    packages = {name for name in trees if (ROOT / name.replace(".", "/")).is_dir()}
    found: dict[str, set[str]] = {room(name): set() for name in trees}
    for name, tree in trees.items():
        if f"{name}.".startswith(f"{package}."):
            found[room(name)] |= {room(target) for target in imports(tree)} - {"", room(name)}
    assert found == {"": set(), **ROOMS[package]}


def test_proofs_stand_on_nothing_that_needs_a_server() -> None:
    trees = modules()
    found: set[str] = set()
    todo = ["storage.proof"]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += [target for target in imports(trees[name]) if target in trees]
    assert found - {"storage"} == PROOF


def test_no_module_imports_itself_through_others() -> None:
    trees = modules()
    graph = {
        name: {t for t in top_level_imports(tree) if t in trees and t != name}
        for name, tree in trees.items()
    }
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name in done:
            return
        for target in sorted(graph[name]):
            walk(target, (*path, name))
        done.add(name)

    for name in graph:
        walk(name, ())


def test_foreign_libraries_stay_in_their_rooms() -> None:
    wrong = [
        f"{name} imports {library}"
        for name, tree in modules().items()
        for target in imports(tree)
        for library, rooms in ONLY_IN.items()
        if target.split(".")[0] == library and name not in rooms
    ]
    assert wrong == []


def test_storage_is_synchronous() -> None:
    wrong = [
        name
        for name, tree in modules().items()
        if name.startswith("storage")
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncFunctionDef | ast.Await)
    ]
    assert wrong == []


def test_no_module_is_named_for_nothing() -> None:
    names = {name.rpartition(".")[2] for name in modules()}
    assert names.isdisjoint({"utils", "util", "helpers", "common", "base", "manager", "misc"})
