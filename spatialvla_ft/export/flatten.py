"""The model's code as one flat folder of modules that run without this package.

transformers loads code that lies beside the weights (`trust_remote_code=True`), and follows only
imports of the form `from .name import x`. So every module that the model, the configuration and the
processor need is written under its own name into one folder, with its imports rewritten; all else
stays as it is in the source, comments included.
"""

from __future__ import annotations

import ast
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import spatialvla_ft

PACKAGE = "spatialvla_ft"
ENTRIES = (
    "models.configuration_spatialvla",
    "models.modeling_spatialvla",
    "models.processing_spatialvla",
)
SHAPES = "export.shapes"
"""Takes the place of jaxtyping."""

NEEDED = ("torch", "transformers", "numpy", "scipy", "PIL", "safetensors", "huggingface_hub")
"""Libraries that exported code may import; torch and transformers bring all but scipy and PIL."""

MODEL_CLASS = "modeling_spatialvla.SpatialVLAForConditionalGeneration"
CONFIG_MAP = {
    "AutoConfig": "configuration_spatialvla.SpatialVLAConfig",
    "AutoModel": MODEL_CLASS,
    "AutoModelForImageTextToText": MODEL_CLASS,
}
PROCESSOR_MAP = {"AutoProcessor": "processing_spatialvla.SpatialVLAProcessor"}
AUTO_MAPS = {
    "config.json": CONFIG_MAP,
    "processor_config.json": PROCESSOR_MAP,
    "preprocessor_config.json": PROCESSOR_MAP,
}
"""Which class is loaded for what, by the file that transformers looks it up in."""


@dataclass(frozen=True)
class Module:
    """One module of the package.

    Attributes:
        name: within the package, e.g. "models.ego3d".
        source: its text.
    """

    name: str
    source: str

    @property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return ast.parse(self.source, filename=self.name)


def write_code(folder: Path) -> list[str]:
    """Write the flat modules and name them in the configurations (`auto_map`).

    Args:
        folder: a checkpoint with config.json and the processor's files.

    Returns:
        Names of the code files.

    Raises:
        ValueError: a module imports what exported code cannot have.
    """
    files = flat_files()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name, classes in AUTO_MAPS.items():
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        _write_json(folder / name, {**content, "auto_map": classes})
    return sorted(files)


def drop_auto_maps(folder: Path) -> None:
    """Remove `auto_map` from a folder's JSON files: loading would ask to trust code it lacks."""
    for file in folder.glob("*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.pop("auto_map", None) is not None:
            _write_json(file, content)


def flat_files() -> dict[str, str]:
    """File name to text of every module that the entries need, ready to lie in one folder."""
    modules = needed_modules()
    names = flat_names(modules)
    return {
        f"{names[module.name]}.py": _header(module) + flat_source(module, names)
        for module in modules.values()
    }


def needed_modules() -> dict[str, Module]:
    """The entries and all modules of the package that they import, directly or not."""
    root = Path(spatialvla_ft.__file__).parent
    found: dict[str, Module] = {}
    waiting = [SHAPES, *ENTRIES]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        file = root / (name.replace(".", "/") + ".py")
        module = found[name] = Module(name, file.read_text(encoding="utf-8"))
        own = (own_import(module, node) for node in ast.walk(module.tree))
        waiting += [target for target in own if target is not None]
    return dict(sorted(found.items()))


def flat_names(modules: dict[str, Any]) -> dict[str, str]:
    """Name within the package to the name in one flat folder.

    Where two modules share their last name, those outside `models` get their folder's in front.
    """
    names = {}
    for name in modules:
        *folders, last = name.split(".")
        shared = sum(other.split(".")[-1] == last for other in modules) > 1
        names[name] = "_".join([*folders, last]) if shared and folders != ["models"] else last
    if len(set(names.values())) != len(names):
        raise ValueError(f"modules share a name in one flat folder: {sorted(names.values())}")
    return names


def own_import(module: Module, node: ast.AST) -> str | None:
    """The module of this package that a statement imports from; None for any other statement.

    Raises:
        ValueError: the form cannot be flattened, or a library is not among `NEEDED`.
    """
    where = f"{PACKAGE}.{module.name}, line {getattr(node, 'lineno', 0)}"
    if isinstance(node, ast.Import):
        for alias in node.names:
            _check_library(alias.name, where)
        return None
    if not isinstance(node, ast.ImportFrom):
        return None
    if node.level == 0:
        if node.module == PACKAGE or not (node.module or "").startswith(PACKAGE + "."):
            _check_library(node.module or "", where)
            return SHAPES if node.module == "jaxtyping" else None
        target = (node.module or "").removeprefix(PACKAGE + ".")
    else:
        parents = module.name.split(".")[: -node.level]
        target = ".".join([*parents, *([node.module] if node.module else [])])
    file = Path(spatialvla_ft.__file__).parent / (target.replace(".", "/") + ".py")
    if node.module is None or not file.is_file():
        raise ValueError(
            f"{where}: {ast.unparse(node)!r} imports a package, and exported code knows modules "
            "only; write `from .module import name`"
        )
    return target


def flat_source(module: Module, names: dict[str, str]) -> str:
    """The module's text with imports of siblings, and without registering its classes.

    Registering is left to transformers: code that is loaded from a checkpoint must not take the
    place of an installed package's classes.
    """
    tree = module.tree
    edits: list[tuple[ast.stmt, str]] = []
    dropped: list[ast.stmt] = []
    for node in ast.walk(tree):
        target = own_import(module, node)
        if target is not None:
            assert isinstance(node, ast.ImportFrom)
            flat = ast.ImportFrom(module=names[target], names=node.names, level=1)
            edits.append((node, ast.unparse(flat)))
        elif _registers(node):
            assert isinstance(node, ast.Expr)
            dropped.append(node)
            edits.append((node, ""))
    edits += _without_unused(tree, dropped)
    lines = module.source.splitlines()
    for node, text in sorted(edits, key=lambda edit: edit[0].lineno, reverse=True):
        assert node.end_lineno is not None
        indented = [" " * node.col_offset + text] if text else []
        lines[node.lineno - 1 : node.end_lineno] = indented
    flattened = "\n".join(lines).rstrip() + "\n"
    ast.parse(flattened)
    return flattened


def _registers(node: ast.AST) -> bool:
    """Whether a statement is `AutoSomething.register(...)`."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and node.value.func.attr == "register"
        and isinstance(node.value.func.value, ast.Name)
        and node.value.func.value.id.startswith("Auto")
    )


def _without_unused(tree: ast.Module, dropped: list[ast.stmt]) -> list[tuple[ast.stmt, str]]:
    """Import statements without the names that only dropped statements used."""
    gone = {id(node) for statement in dropped for node in ast.walk(statement)}
    names = {n.id for s in dropped for n in ast.walk(s) if isinstance(n, ast.Name)}
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in gone}
    unused = {name for name in names - used if name.startswith("Auto")}
    edits: list[tuple[ast.stmt, str]] = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and any(a.name in unused for a in node.names):
            kept = [alias for alias in node.names if alias.name not in unused]
            text = ast.unparse(ast.ImportFrom(node.module, kept, node.level)) if kept else ""
            edits.append((node, text))
    return edits


def _check_library(name: str, where: str) -> None:
    top = name.split(".")[0]
    if top not in (*NEEDED, "jaxtyping") and top not in sys.stdlib_module_names:
        raise ValueError(
            f"{where} imports {name}, which exported code cannot count on; it may use the standard "
            f"library and {', '.join(NEEDED)}"
        )


def _header(module: Module) -> str:
    return (
        f"# {PACKAGE}/{module.name.replace('.', '/')}.py of spatialvla-ft "
        f"{spatialvla_ft.__version__}, flattened at export.\n"
        "# SPDX-License-Identifier: MIT. Copyright (c) 2026 the spatialvla-ft contributors.\n"
    )


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
