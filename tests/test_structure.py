"""Imports point one way: scripts -> evaluation -> training -> torch, and never in a circle."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [*ROOT.glob("*.py"), *ROOT.glob("training/**/*.py"), *ROOT.glob("evaluation/**/*.py")]


def name_of(path: Path) -> str:
    """training/data/mix.py is training.data.mix, and a folder's __init__.py has the folder's name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in FILES}
SCRIPTS = {name for name, path in MODULES.items() if path.parent == ROOT and "__main__" in path.read_text()}
ALONE = ("vit", "resnet", "config_vit_cifar10")


def imports(node: ast.AST, late: bool) -> Iterator[str]:
    """The modules of this project that a file imports; with `late`, also those that its functions import."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "a relative import"
            inside = [f"{child.module}.{alias.name}" for alias in child.names]
            names = [name if name in MODULES else child.module for name in inside]
        else:
            names = []
            if late or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield from imports(child, late)
        yield from (name for name in names if name in MODULES)


def imports_of(name: str, late: bool = True) -> set[str]:
    return set(imports(ast.parse(MODULES[name].read_text()), late))


def test_the_scripts_are_found():
    assert {"train_vit_cifar10", "train_resnet_cifar10", "evaluate_vit", "compare_runs"} <= SCRIPTS
    assert imports_of("evaluate_vit") > {"vit", "resnet", "evaluation.trained", "evaluation.report"}
    assert "evaluation.report" not in imports_of("evaluate_vit", late=False)


@pytest.mark.parametrize("name", ALONE)
def test_the_models_and_the_config_import_nothing_of_the_project(name):
    assert imports_of(name) == set()


@pytest.mark.parametrize("name", [name for name in MODULES if name.partition(".")[0] in ("training", "evaluation")])
def test_no_module_imports_a_script_and_training_never_imports_evaluation(name):
    found = imports_of(name)
    assert not found & SCRIPTS
    assert not found & {"vit", "resnet"}  # any model can be trained and evaluated: the scripts say which
    if name.startswith("training"):
        assert not [other for other in found if other.startswith("evaluation")]


def test_no_circle_of_imports():
    graph = {name: imports_of(name, late=False) for name in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the circle
