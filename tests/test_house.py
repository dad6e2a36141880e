"""The rules of the house that import-linter cannot express."""

import ast
from pathlib import Path

import grimp
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("orchestration", "assets", "models", "validations")

# The modules besides every asset.py that may know Dagster.
DOORS = {"assets.link"}


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph(*PACKAGES, include_external_packages=True, cache_dir=None)


def test_asset_py_is_the_only_door_to_dagster(graph):
    importers = graph.find_modules_that_directly_import("dagster")
    strangers = {
        module
        for module in importers
        if not module.startswith("orchestration") and not module.endswith(".asset") and module not in DOORS
    }
    assert strangers == set()


def test_models_import_nothing_but_what_a_gpu_box_has(graph):
    allowed = {"torch", "transformers", "lightning", "numpy", "safetensors", "tokenizers", "pyarrow", "PIL", "models"}
    # Imported inside the functions that need them: a hub id for a folder, a text model behind an address, adapters.
    allowed |= {"huggingface_hub", "openai", "peft"}
    external = {
        imported.split(".")[0]
        for module in graph.modules
        if module.startswith("models")
        for imported in graph.find_modules_directly_imported_by(module)
    }
    assert external - allowed - set(__import__("sys").stdlib_module_names) == set()


def stages_and_deps():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    return [
        (name, [dep for dep in stage.get("do", stage)["deps"] if not dep.startswith(("data/", "reports/"))])
        for name, stage in stages.items()
    ]


# What only places, tracks, wires or keeps does not reach a result; an asset.py is imported for the graph's edges alone.
WIRING = {
    f"assets.{name}" for name in ("workspace", "identity", "link", "processes", "progress", "reuse", "tracking")
} | {"assets"}

# A package whose modules are imported by the names that a parameter gives.
CHOSEN_BY_NAME = "assets.geometry.estimators"


@pytest.mark.parametrize(
    ("stage", "deps"), stages_and_deps(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_stage_depends_on_all_code_that_its_link_imports(graph, stage, deps):
    """A link whose imported code is not among the stage's deps would not be re-run when that code changes."""
    reached, todo = set(), imported_by_asset(stage)
    while todo:
        module = todo.pop()
        if module in reached or module in WIRING or module.endswith(".asset"):
            continue
        reached.add(module)
        todo |= graph.find_children(module) if module == CHOSEN_BY_NAME else set()
        todo |= {m for m in graph.find_modules_directly_imported_by(module) if m.split(".")[0] in PACKAGES}
    files = {module.replace(".", "/") + ".py" for module in reached}
    files = {file for file in files if (ROOT / file).exists()}
    missing = {file for file in files if not any(file == dep or file.startswith(f"{dep}/") for dep in deps)}
    assert missing == set(), f"add to the deps of stage {stage} in dvc.yaml"


def imported_by_asset(asset: str) -> set[str]:
    """Modules that the function of an asset uses, itself or through functions of the same file."""
    (tree,) = [
        tree
        for path in sorted(ROOT.glob("assets/*/asset.py"))
        for tree in [ast.parse(path.read_text())]
        if any(isinstance(node, ast.FunctionDef) and node.name == asset for node in tree.body)
    ]
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    on_top = {alias.asname or alias.name: node.module for node in tree.body if is_ours(node) for alias in node.names}
    modules, todo, done = set(), {asset}, set()
    while todo:
        name = todo.pop()
        done.add(name)
        function = functions[name]
        for node in (n for part in (function.args, *function.body) for n in ast.walk(part)):
            if is_ours(node):
                modules.add(node.module)
            elif isinstance(node, ast.Name) and node.id in on_top:
                modules.add(on_top[node.id])
            elif isinstance(node, ast.Name) and node.id in functions and node.id not in done:
                todo.add(node.id)
    started = {"models.train"} if "models.train" in ast.dump(tree) else set()
    return modules | started


def is_ours(node: ast.AST) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in PACKAGES
