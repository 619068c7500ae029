"""The rooms of the house: who may import whom. Every import of every file is parsed, none is executed."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "common": set(),
    "imagery": {"common"},
    "teachers": {"common"},
    "featsharp_adapter": {"teachers", "imagery", "common"},
    "eval_suite": {"teachers", "imagery", "common"},
    "distill": {"teachers", "featsharp_adapter", "imagery", "common"},
    "agglomerate": {"teachers", "featsharp_adapter", "eval_suite", "imagery", "distill", "common"},
    "tools": {"teachers", "featsharp_adapter", "eval_suite", "imagery", "distill", "common"},
}
# Entry scripts stand at the top of their room: they may wire rooms together, and nobody imports them.
ENTRY_SCRIPTS = {
    "distill/run.py",
    "distill/ablate.py",
    "featsharp_adapter/train.py",
    "featsharp_adapter/__main__.py",
    "eval_suite/__main__.py",
    "tools/tiny_teachers/train.py",
}
#: Inside distill, what may import the eval suite beside the entry scripts.
MAY_EVALUATE = ("distill/evaluation/", "distill/preflight.py")
ALWAYS_FORBIDDEN = {"benchmarks", "tests", "examples"}
FILES = sorted(path for room in MAY_IMPORT for path in (ROOT / room).rglob("*.py"))


def imported_modules(source: str) -> list[str]:
    """Dotted names a source imports anywhere, `from a.b import c` counting as both a.b and a.b.c."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room"
            names += [node.module or ""] + [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def violations(file: str, source: str) -> list[str]:
    """What in `source`, standing at the repository path `file`, breaks the house rules."""
    room = file.split("/", 1)[0]
    entries = {entry.removesuffix(".py").replace("/", ".") for entry in ENTRY_SCRIPTS}
    found = []
    for name in imported_modules(source):
        target = name.split(".", 1)[0]
        if target in ALWAYS_FORBIDDEN or name in entries:
            found.append(f"{file} imports {name}")
        elif target == "eval_suite" and file.startswith(MAY_EVALUATE):
            continue
        elif target in MAY_IMPORT and target not in MAY_IMPORT[room] | {room} and file not in ENTRY_SCRIPTS:
            found.append(f"{file} imports {name}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path: Path) -> None:
    assert violations(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")) == []


def test_the_check_sees_a_violation() -> None:
    assert violations("imagery/x.py", "import teachers.contracts") == ["imagery/x.py imports teachers.contracts"]
    assert violations("eval_suite/x.py", "def f():\n    from distill.student.model import S") != []
    assert violations("distill/x.py", "from distill.run import main") != []
    assert violations("distill/run.py", "from eval_suite.suite import run_suite") == []
    assert violations("distill/evaluation/x.py", "from eval_suite.suite import run_suite") == []
    assert violations("distill/training/x.py", "from eval_suite.suite import run_suite") != []


MODULES = {
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__"): path for path in FILES
}


def top_level(tree: ast.AST) -> ast.Module:
    """The statements that run when a module is imported: functions left out, and what is for type checkers alone."""
    skipped = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    found: list[ast.stmt] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append(node)
        elif not isinstance(node, skipped) and not (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        ):
            found += top_level(node).body
    return ast.Module(found, [])


def imports_of(module: str, path: Path) -> set[str]:
    """Our own modules that a module imports when it is imported itself; a package only where its name is used."""
    names = imported_modules(ast.unparse(top_level(ast.parse(path.read_text(encoding="utf-8")))))
    own = {name for name in names if name in MODULES and name != module}
    return {name for name in own if not any(other.startswith(f"{name}.") for other in own)}


def test_no_module_imports_itself_by_a_circle() -> None:
    graph = {module: imports_of(module, path) for module, path in MODULES.items()}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(graph)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_hides_an_import_of_ours(path: Path) -> None:
    """Entry scripts alone load rooms when a command needs them: nobody imports them, so they close no circle."""
    if str(path.relative_to(ROOT)) in ENTRY_SCRIPTS:
        return
    source = path.read_text(encoding="utf-8")
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    inner = [ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, functions)]
    names = {name for function in inner for name in imported_modules(function)}
    assert sorted(name for name in names if name.split(".", 1)[0] in MAY_IMPORT) == []
