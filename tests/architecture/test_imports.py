"""What an import costs and what it may do: help without torch, pure specs, no work on import.

The direction of imports between packages is proved by import-linter (`make lint`), not here.
"""

from __future__ import annotations

import ast
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vega_diffusion

SOURCE = Path(vega_diffusion.__file__).parent
HEAVY = {"torch", "numpy", "diffusers", "transformers", "accelerate", "peft", "PIL", "safetensors", "huggingface_hub"}
MODULES = sorted(
    module.name for module in pkgutil.walk_packages([str(SOURCE)], "vega_diffusion.") if "__main__" not in module.name
)
LIGHT = [name for name in MODULES if name.split(".")[1] in ("cli", "specs", "errors")]


def python(code: str, folder: Path) -> str:
    """Run code in a fresh interpreter that sees an empty home and an empty current folder; return its stdout."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "HF_", "VEGA_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=env | {"HOME": str(folder), "HF_HUB_OFFLINE": "1", "MPLCONFIGDIR": str(folder / "mpl")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_lists_every_verb_without_a_heavy_library(tmp_path: Path) -> None:
    out = python(
        "import sys; from vega_diffusion.cli.main import main, VERBS; code = main(['--help']);"
        f"print(code, sorted(set(sys.modules) & {HEAVY!r}), all(verb for verb in VERBS))",
        tmp_path,
    )
    assert out.splitlines()[-1] == "0 [] True"
    assert "generate" in out
    assert "inspect" in out


def test_specs_errors_and_verbs_import_no_heavy_library(tmp_path: Path) -> None:
    assert len(LIGHT) >= 8
    code = f"import importlib, sys\nfor name in {LIGHT!r}: importlib.import_module(name)\n"
    out = python(code + f"print(sorted(set(sys.modules) & {HEAVY!r}))", tmp_path)
    assert out.strip() == "[]"


def test_the_package_itself_imports_no_heavy_library_and_its_names_resolve(tmp_path: Path) -> None:
    out = python(
        f"import sys, vega_diffusion as v; light = not set(sys.modules) & {HEAVY!r};"
        "missing = [name for name in v.__all__ if not hasattr(v, name)]; print(light, missing)",
        tmp_path,
    )
    assert out.strip() == "True []"


def test_importing_every_module_writes_nothing_and_sets_up_no_logging(tmp_path: Path) -> None:
    code = f"""
import importlib, json, logging, os
before = logging.getLogger().handlers[:]
for name in {MODULES!r}:
    importlib.import_module(name)
ours = [name for name, log in logging.Logger.manager.loggerDict.items()
        if name.startswith("vega_diffusion") and getattr(log, "handlers", [])]
print(json.dumps([len(logging.getLogger().handlers) - len(before), ours]))
"""
    new_handlers, loggers = json.loads(python(code, tmp_path).splitlines()[-1])
    assert (new_handlers, loggers) == (0, [])
    # matplotlib keeps a font cache in the folder that this test gives it; nothing else may appear.
    assert {path.name for path in tmp_path.iterdir()} <= {"mpl"}


def module_level(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the nodes that run when the module is imported (what functions hold runs later)."""
    stack: list[ast.AST] = list(tree.body)
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            stack.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_module_configures_anything_on_import(path: Path) -> None:
    forbidden = {"basicConfig", "filterwarnings", "simplefilter", "makedirs", "mkdir", "manual_seed", "set_num_threads"}
    tree = ast.parse(path.read_text())
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for node in module_level(tree)
        if isinstance(node, ast.Call)
    }
    # The guarded last lines of a program do run code; they are no import.
    assert not called & forbidden
    docstring = ast.get_docstring(tree)
    assert docstring, "a module opens by saying what lives here and what does not"
