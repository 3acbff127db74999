"""The house keeps its order: which of our files, and which libraries, a file may import."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {
    "configs": [
        *("section", "home", "option_names", "load", "pack", "model", "train", "explain", "serve", "score"),
    ],
    "packer": [
        *("proportion", "progress", "storage", "video", "decoders", "labels", "planning", "shards", "retry"),
        *(
            "candidates",
            "prepare",
            "pack",
            "verify",
            "repair",
            "relabel",
            "pitfalls",
            "report",
            "inspection",
            "synthetic",
        ),
        "__main__",
    ],
    "trainer": [
        *("schedule", "views", "stream", "model", "evaluation", "learning", "tracking", "worker", "driver"),
        *("explain", "__main__"),
    ],
    "serve": [
        *("messages", "request", "replica", "scoring", "gateway", "proxy", "app", "local_ray", "server_life"),
        *("command", "__main__"),
    ],
    "tests": [
        "support",
        "fuzz",
        "bench",
        "drill",
        "demo",
        "pictures",
        "packing",
        "training",
        "serving",
        "project",
        "conftest",
    ],
}
"""Packages, lowest first, and the rooms (folders or files) of each, lowest first.

A file may import from its own room, from the rooms before it in its package, and from the packages before its own.
"""
DOORS = {
    "trainer": [
        *("packer.proportion", "packer.storage", "packer.video.jpeg", "packer.video.sampling", "packer.shards"),
        # explain: a file that was never packed is decoded as a server does it, and long passes show how far they are.
        *("packer.progress", "packer.decoders.pool", "packer.video.container"),
    ],
    "serve": [
        *("packer.progress", "packer.storage", "packer.video", "packer.decoders", "packer.shards.manifest"),
        *("trainer.views", "trainer.model.contract", "trainer.tracking"),
    ],
}
"""What a package may enter of the packages below it. Everything may enter configs, and tests may enter everything."""
LIBRARIES = {
    "mlflow": ["trainer.tracking", "serve.replica.versions"],
    "ray": [
        *("packer.decoders.ray_decoder", "trainer.driver", "trainer.worker.entry"),
        *("serve.request.metrics", "serve.app", "serve.local_ray"),
    ],
}
"""Libraries that take seconds to import or that another program may replace one day, and the only rooms to use them."""
FORBIDDEN = {
    "configs": {"av", "mlflow", "ray", "torch", "torchvision", "webdataset"},
    "packer": {"mlflow", "torch", "torchvision", "webdataset"},  # webdataset loads torch
    "trainer": {"av"},
}
"""Libraries that a package never imports."""
PUBLIC_ADDRESSES = {"serve.proxy": ["from serve.proxy.set_up import set_up_proxy as set_up_proxy"]}
"""What an `__init__.py` may hold beside its docstring, because others find a function by this address."""
PATHS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ROOMS
    for path in sorted((ROOT / package).rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in PATHS.items()}


def imports(name: str) -> set[str]:
    """Returns what a file imports, inside functions too: our files by their full name, libraries by theirs.

    A string that names one of our files counts: it is imported by `python -m` or by a process that loads it early.
    """
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{PATHS[name]}:{node.lineno} is a relative import: give the full name"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & PATHS.keys()) or {node.module}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            found |= {node.value} & PATHS.keys()
    return found - {name}


IMPORTS = {name: imports(name) for name in TREES}
PACKAGED = [name for name in TREES if not name.startswith("tests")]
"""The files that users get."""


def is_inside(name: str, rooms: list[str]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def height(name: str) -> tuple[int, int]:
    """Returns how high a file stands: its package, then its room; a package's own `__init__` stands below its rooms."""
    package, *rooms = name.split(".")
    return list(ROOMS).index(package), ROOMS[package].index(rooms[0]) if rooms else -1


def our_arrows() -> Iterator[tuple[str, str]]:
    """Yields every pair of our files of which the first imports the second."""
    for name, targets in IMPORTS.items():
        yield from ((name, target) for target in sorted(targets) if target in PATHS)


def test_every_file_has_a_room_in_the_table() -> None:
    homeless = [name for name in TREES if "." in name and name.split(".")[1] not in ROOMS[name.split(".")[0]]]
    assert not homeless, "give these files a room, or their room a place in ROOMS"
    vague = {"utils", "helpers", "common", "base", "misc", "manager"}
    assert not [name for name in TREES if vague & set(name.split("."))], "name files by what they hold"


def test_every_entry_of_the_tables_is_used() -> None:
    rooms = {f"{package}.{room}" for package, names in ROOMS.items() for room in names}
    assert not [room for room in sorted(rooms) if room not in PATHS], "ROOMS names rooms that do not exist"
    unused = [
        f"{package} -> {door}"
        for package, doors in DOORS.items()
        for door in doors
        if not any(name.startswith(f"{package}.") and is_inside(target, [door]) for name, target in our_arrows())
    ]
    assert not unused, "DOORS that nobody uses"
    idle = [
        f"{room} -> {library}"
        for library, entries in LIBRARIES.items()
        for room in entries
        if not any(is_inside(name, [room]) and library in libraries(name) for name in TREES)
    ]
    assert not idle, "LIBRARIES names rooms that do not use the library"


def test_no_import_runs_back_up() -> None:
    wrong = [f"{name} imports {target}" for name, target in our_arrows() if height(target) > height(name)]
    assert not wrong, "a file may import only from its own room and from those before it in ROOMS"


def test_packages_below_are_entered_by_their_doors() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, target in our_arrows()
        if (package := name.partition(".")[0]) in DOORS
        and "." in target
        and not is_inside(target, [package, "configs", *DOORS[package]])
    ]
    assert not wrong, "a package enters those below it only by its DOORS"


def test_no_files_import_one_another_in_a_circle() -> None:
    try:
        TopologicalSorter({name: targets & PATHS.keys() for name, targets in IMPORTS.items()}).prepare()
    except CycleError as error:
        pytest.fail(f"files import one another in a circle: {' <- '.join(error.args[1])}")


def libraries(name: str) -> set[str]:
    return {target.partition(".")[0] for target in IMPORTS[name]} - ROOMS.keys()


def test_libraries_stay_where_they_belong() -> None:
    wrong = [
        f"{name} imports {library}"
        for name in PACKAGED
        for library in sorted(libraries(name))
        if library in FORBIDDEN.get(name.partition(".")[0], set())
        or (library in LIBRARIES and not is_inside(name, LIBRARIES[library]))
    ]
    assert not wrong, "see FORBIDDEN and LIBRARIES"


def test_names_with_an_underscore_stay_in_their_file() -> None:
    wrong = [f"{PATHS[name]}:{line}: {text}" for name in PACKAGED for line, text in private_uses(TREES[name])]
    assert not wrong, "a name that another file needs has no underscore"


def private_uses(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields the line and the text of each use of a private name of another of our files."""
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ROOMS:
            modules |= {alias.asname or alias.name for alias in node.names}
            yield from ((node.lineno, ast.unparse(node)) for alias in node.names if alias.name.startswith("_"))
        elif isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name for alias in node.names if alias.name.partition(".")[0] in ROOMS}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr) and ast.unparse(node.value) in modules:
            yield node.lineno, ast.unparse(node)


def test_strings_that_look_like_our_modules_name_real_ones() -> None:
    """Such as what a process loads early, what `python -m` runs, and the names of loggers."""
    rooms = "|".join(rf"{package}\.{room}" for package, names in ROOMS.items() for room in names)
    wrong = [
        f"{PATHS[name]}:{node.lineno}: {node.value}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(rf"({rooms})(\.\w+)*", node.value)
        and node.value not in PATHS
        and node.value.rpartition(".")[2] not in defined(node.value.rpartition(".")[0])
    ]
    assert not wrong, "no file of ours has this name"


def defined(name: str) -> set[str]:
    """Returns the names that a file of ours binds at its top level; none if there is no such file."""
    bound = set()
    for node in TREES[name].body if name in TREES else []:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {alias.asname or alias.name for alias in node.names}
        else:
            bound |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return bound


def test_no_test_imports_another_test() -> None:
    tests = re.compile(r"tests\.(.+\.)?(test_\w+|conftest)")
    wrong = [f"{name} imports {target}" for name, target in our_arrows() if tests.fullmatch(target)]
    assert not wrong, "what tests share lies in tests/support"


def test_inits_hold_only_their_docstring() -> None:
    for name in PACKAGED:
        if PATHS[name].name == "__init__.py":
            assert ast.get_docstring(TREES[name]), f"{PATHS[name]} has no docstring"
            code = [ast.unparse(node) for node in TREES[name].body[1:]]
            assert code == PUBLIC_ADDRESSES.get(name, []), f"{PATHS[name]} holds code"
