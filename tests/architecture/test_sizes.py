"""Sizes that keep the code readable and the suite fast: lines a file, lines a function, interpreters started."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("src", "tests", "scripts") for path in (ROOT / folder).rglob("*.py"))
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 80
# Starting an interpreter that imports torch and diffusers costs seconds; what needs no process calls `main(argv)`.
MAX_INTERPRETER_TESTS = 15
Function = ast.FunctionDef | ast.AsyncFunctionDef


def identify(path: Path) -> str:
    return str(path.relative_to(ROOT))


def code_lines(function: Function) -> int:
    """Lines of a function without its docstring: long explanations are welcome, long code is not."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None and first.end_lineno is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def test_the_lists_of_files_are_not_empty() -> None:
    assert sum(path.is_relative_to(ROOT / "src") for path in FILES) >= 20


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_file_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MAX_FILE_LINES
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, Function)]
    assert {f.name: code_lines(f) for f in functions if code_lines(f) > MAX_FUNCTION_LINES} == {}


def interpreter_tests(tree: ast.Module) -> set[str]:
    """Names of the tests of a module that start Python, themselves or through a function of the module.

    Starting Python is recognised by `sys.executable`, which is the one right way to do it in a test.
    """
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, Function)}
    starts = {name for name, node in functions.items() if "sys.executable" in ast.unparse(node)}
    while True:
        calls = {
            name
            for name, node in functions.items()
            if any(isinstance(inner, ast.Name) and inner.id in starts for inner in ast.walk(node))
            or any(argument.arg in starts for argument in node.args.args)
        }
        if calls <= starts:
            return {name for name in starts if name.startswith("test_")}
        starts |= calls


def test_few_tests_start_an_interpreter() -> None:
    found = {
        f"{path.name}::{name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in interpreter_tests(ast.parse(path.read_text()))
        # tests/architecture checks what an import costs, for which it must start an interpreter
        if "architecture" not in path.parts
    }
    assert len(found) <= MAX_INTERPRETER_TESTS, sorted(found)


def test_interpreter_tests_are_recognised_through_helpers_and_fixtures() -> None:
    module = ast.parse(
        "import sys\n"
        "def run(): return [sys.executable]\n"
        "def ran(): return run()\n"
        "def test_a(): run()\n"
        "def test_b(ran): pass\n"
        "def test_c(): pass\n"
    )
    assert interpreter_tests(module) == {"test_a", "test_b"}
