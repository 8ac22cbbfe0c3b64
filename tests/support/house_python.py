"""The rules of who may import what in fastclip, as functions over the sources of its modules."""

import ast
import re
from collections.abc import Iterator, Mapping

from source_tree import ROOT

# An import goes from a room to one of a lower number, or of the same one without a cycle.
RANK = {
    "fastclip._C": 0,
    "fastclip._build": 0,
    "fastclip.backends": 1,
    "fastclip.distributed": 2,
    "fastclip.clip_grad": 3,
    "fastclip.clipper": 3,
    "fastclip.clipper_state": 3,
    "fastclip.on_step": 3,
    "fastclip.patch": 3,
    "fastclip.functional": 3,
    "fastclip.optim": 3,
    "fastclip.amp": 3,
    "fastclip.adaptive": 3,
    "fastclip.monitor": 3,
    "fastclip": 4,
}
# These use only public names, and no room imports them.
PROGRAMS = ("fastclip.__main__", "fastclip.cli", "fastclip.integrations")
BACKENDS = ("fastclip.backends.native", "fastclip.backends.reference", "fastclip.backends.triton")
# Names that Python itself gives every module.
DUNDERS = {"__file__", "__name__"}
# The one module, with its own parts, that may import each of these.
ONLY_IN = {
    "fastclip._C": "fastclip.backends.extension",
    "triton": "fastclip.backends.triton",
    "torch.library": "fastclip.ops",
}


def python_sources() -> dict[str, str]:
    """Return the source of each module of fastclip by its dotted name."""
    found = {}
    for path in (ROOT / "fastclip").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path.read_text(encoding="utf-8")
    return found


def imports(module: str, sources: Mapping[str, str]) -> Iterator[str]:
    """Yield the dotted name of everything that a module imports, wherever in it."""
    known = {*sources, *ONLY_IN}
    is_package = any(name.startswith(f"{module}.") for name in sources)
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(sources[module])):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            kept = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join(
                [*(kept if node.level else []), *([node.module] if node.module else [])]
            )
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in known else base
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            constants = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
            yield from (str(value) for value in constants)


def is_program(module: str) -> bool:
    """Return whether a module is a program or a part of one."""
    return ".".join(module.split(".")[:2]) in PROGRAMS


def rank(module: str) -> int:
    """Return a module's rank; the modules of a package have the package's."""
    return RANK[".".join(module.split(".")[:2])]


def unplaced(sources: Mapping[str, str]) -> list[str]:
    """List the rooms that have no rank and are no programs."""
    rooms = {".".join(name.split(".")[:2]) for name in sources}
    return sorted(room for room in rooms if room not in RANK and not is_program(room))


def wrong_imports(sources: Mapping[str, str]) -> list[str]:
    """List the imports that go the wrong way, as "importer -> imported"."""
    wrong = []
    for module in sources:
        for target in imports(module, sources):
            owners = [ONLY_IN[name] for name in ONLY_IN if f"{target}.".startswith(f"{name}.")]
            inside = target.partition(".")[0] == "fastclip"
            if owners:
                allowed = any(f"{module}.".startswith(f"{owner}.") for owner in owners)
            elif not inside:
                allowed = True
            elif is_program(module):
                allowed = target == "fastclip" or is_program(target)
            else:
                allowed = not is_program(target) and rank(target) <= rank(module)
            if not allowed:
                wrong.append(f"{module} -> {target}")
    return wrong


def wrong_backends(sources: Mapping[str, str]) -> list[str]:
    """List the imports of one backend from another, as "importer -> imported"."""
    wrong = []
    for module in sources:
        room = ".".join(module.split(".")[:3])
        if room not in BACKENDS:
            continue
        for target in imports(module, sources):
            other = ".".join(target.split(".")[:3])
            if other == "fastclip.backends" or (other in BACKENDS and other != room):
                wrong.append(f"{module} -> {target}")
    return wrong


def cycle(sources: Mapping[str, str]) -> list[str]:
    """Return the modules of one import cycle, or nothing."""
    graph = {
        module: {name for name in imports(module, sources) if name in sources and name != module}
        for module in sources
    }
    while True:
        leaves = {module for module, targets in graph.items() if not targets & graph.keys()}
        if not leaves:
            return sorted(graph)
        graph = {module: graph[module] for module in graph.keys() - leaves}


def private_names(sources: Mapping[str, str], public: set[str]) -> list[str]:
    """List the names that programs take from fastclip though it does not export them."""
    wrong = []
    programs = [module for module in sources if is_program(module)]
    allowed = public | {module.rpartition(".")[2] for module in programs}
    for module in programs:
        for node in ast.walk(ast.parse(sources[module])):
            names: list[str] = []
            if isinstance(node, ast.ImportFrom) and (node.module == "fastclip" and not node.level):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "fastclip":
                names = [node.attr]
            wrong += [f"{module}: {name}" for name in names if name not in allowed | DUNDERS]
    return wrong


def environment_reads(sources: Mapping[str, str]) -> list[str]:
    """List the modules outside fastclip/backends/ that read the environment."""
    return [
        module
        for module, text in sources.items()
        if re.search(r"\bos\.(environ|getenv)\b", text)
        and not module.startswith("fastclip.backends.")
        and not is_program(module)
    ]
