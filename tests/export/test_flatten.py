"""Exported code is the package's own, in one folder, and runs where the package is not."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor

import spatialvla_ft
from spatialvla_ft.export import shapes
from spatialvla_ft.export.flatten import (
    Module,
    drop_auto_maps,
    flat_files,
    flat_names,
    flat_source,
    needed_modules,
)

ROOT = Path(__file__).parents[2]
PACKAGE = Path(spatialvla_ft.__file__).parent


def test_an_export_acts_where_the_package_is_not(exported, tmp_path):
    """In a process of its own, from another folder, with the package impossible to import."""
    command = [sys.executable, "-I", str(ROOT / "tools/check_export_alone.py"), str(exported.out)]
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name in ("AutoModel", "AutoModelForImageTextToText", "AutoModel saved again"):
        assert found[name] == {"ids_equal": True, "actions": pytest.approx(0, abs=1e-6)}, name
    assert found["inputs"] == 3
    assert found["released_names"] is True
    assert found["float_pictures"] == 0
    assert "millimetres" in found["integer_depth"]
    assert "You are using a model of type" not in done.stderr
    assert all(name.startswith("transformers_modules.") for name in found["code"])


def test_the_package_loads_an_export_with_its_own_code(exported, monkeypatch):
    """Nobody is asked to trust code, whatever auto_map says."""

    def asked(*_):
        raise AssertionError("asked whether to trust the code")

    monkeypatch.setattr("builtins.input", asked)
    saved = json.loads((exported.out / "config.json").read_text())
    assert saved["auto_map"]["AutoModel"] == (
        "modeling_spatialvla.SpatialVLAForConditionalGeneration"
    )
    model = AutoModel.from_pretrained(exported.out)
    assert type(model) is spatialvla_ft.SpatialVLAForConditionalGeneration
    assert type(AutoConfig.from_pretrained(exported.out)) is spatialvla_ft.SpatialVLAConfig
    assert type(AutoProcessor.from_pretrained(exported.out)) is spatialvla_ft.SpatialVLAProcessor


def test_the_package_keeps_its_place_where_the_code_is_trusted(exported):
    """transformers prefers classes that a package registered, and exported code registers none."""
    model = AutoModel.from_pretrained(exported.out, trust_remote_code=True)
    assert type(model) is spatialvla_ft.SpatialVLAForConditionalGeneration


def test_the_code_is_the_packages_own_but_for_imports():
    """Statement by statement, as syntax trees."""
    files = flat_files()
    modules = needed_modules()
    names = flat_names(modules)
    assert len(files) == len(modules) > 30
    for module in modules.values():
        own = (PACKAGE / (module.name.replace(".", "/") + ".py")).read_text()
        flat = files[names[module.name] + ".py"]
        kept = [ast.dump(node) for node in ast.parse(own).body if not set_aside(node)]
        assert [ast.dump(node) for node in ast.parse(flat).body if not set_aside(node)] == kept
        comments = [line for line in own.splitlines() if line.strip().startswith("#")]
        assert all(line in flat.splitlines() for line in comments), module.name
        assert flat.count("MIT") >= 1
        assert spatialvla_ft.__version__ in flat.splitlines()[0]


def set_aside(node):
    imports = isinstance(node, (ast.Import, ast.ImportFrom))
    checks = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    return imports or checks or ast.unparse(node).startswith("Auto")


def test_every_import_finds_its_name_in_the_same_folder():
    """Only the form that transformers follows, and only names that are there."""
    files = flat_files()
    allowed = {*sys.stdlib_module_names, "torch", "transformers", "numpy", "scipy"}
    allowed |= {"PIL", "safetensors", "huggingface_hub"}
    for name, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, name
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert node.module.split(".")[0] in allowed, (name, node.module)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1
                assert f"{node.module}.py" in files, (name, node.module)
                target = bound_names(ast.parse(files[f"{node.module}.py"]))
                assert {alias.name for alias in node.names} <= target, (name, node.module)


def bound_names(tree):
    names = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    return names


NAMES = {"models.made_up": "made_up", "actions.grid": "actions_grid", "export.shapes": "shapes"}


def flattened(source, name="models.made_up"):
    return flat_source(Module(name, source), NAMES)


def test_imports_are_rewritten_where_they_stand():
    source = '''"""Words."""
from ..actions.grid import (
    ActionGrid,
    grid as g,
)
from spatialvla_ft.actions.grid import Other  # noqa
from jaxtyping import Float
import math

def f():
    # kept: from ..actions.grid import nothing
    from ..actions.grid import Late
    return "from ..actions.grid import x", Late
'''
    assert (
        flattened(source)
        == '''"""Words."""
from .actions_grid import ActionGrid, grid as g
from .actions_grid import Other
from .shapes import Float
import math

def f():
    # kept: from ..actions.grid import nothing
    from .actions_grid import Late
    return "from ..actions.grid import x", Late
'''
    )


def test_registering_goes_and_what_only_it_used():
    source = """from transformers import AutoConfig, AutoModel, Cache
class A: pass
KEPT = AutoModel
AutoConfig.register("a", A, exist_ok=True)
AutoModel.register(A, A, exist_ok=True)
"""
    want = ["from transformers import AutoModel, Cache", "class A: pass", "KEPT = AutoModel"]
    assert flattened(source).splitlines() == want


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("from . import attention", "imports a package"),
        ("from ..actions import grid", "imports a package"),
        ("from spatialvla_ft import x", "cannot count on"),
        ("import spatialvla_ft.actions.grid", "cannot count on"),
        ("import yaml", "imports yaml, which exported code cannot count on"),
        ("def f():\n    from peft.utils import x", "line 2 imports peft.utils"),
    ],
)
def test_what_cannot_be_flattened_is_refused(source, message):
    with pytest.raises(ValueError, match=message):
        flattened(source)


def test_names_that_collide_get_their_folder():
    names = ["models.grid", "actions.grid", "depth.holes"]
    assert flat_names(dict.fromkeys(names)) == {
        "models.grid": "grid",
        "actions.grid": "actions_grid",
        "depth.holes": "holes",
    }
    with pytest.raises(ValueError, match="share a name"):
        flat_names(dict.fromkeys(["models.a", "depth.a", "models.depth_a"]))


def test_shapes_stand_in_for_jaxtyping():
    used = {"Bool", "Float", "Float32", "Float64", "Int", "Int64", "UInt8"}
    for name in used:
        assert hasattr(jaxtyping, name)
        kind = getattr(shapes, name)
        assert kind[np.ndarray, "B T"] is np.ndarray
        assert kind[torch.Tensor, "B 3"] | None == torch.Tensor | None


def test_auto_maps_are_dropped(tmp_path):
    for name in ("config.json", "other.json"):
        (tmp_path / name).write_text(json.dumps({"auto_map": {"AutoModel": "a.B"}, "kept": 1}))
    (tmp_path / "list.json").write_text("[1]")
    drop_auto_maps(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {"kept": 1}
    assert json.loads((tmp_path / "other.json").read_text()) == {"kept": 1}
