"""The house held by a test: who may import whom, what loads when, how long a file or a function may be."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import slimseek
from slimseek import errors, plugins

ROOT = Path(__file__).parent.parent
SOURCE = Path(slimseek.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
FOLDERS = ("methods", "metrics", "backends", "datasets", "indexes", "models", "importance", "losses")
HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "openvino", "onnxscript", "onnxslim", "usearch", "scipy",
         "ir_measures", "sentence_transformers", "fastapi", "altair", "tokenizers")  # fmt: skip
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 60


def name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text("utf-8")) for path in FILES}


def imported(tree: ast.Module) -> Iterator[str]:
    """Every module of slimseek that a file names: imports anywhere in it, and names given to ``require``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("slimseek."):
            yield node.value


def in_a_new_process(code: str) -> list[str]:
    """The modules loaded after that code, top names only."""
    script = f"{code}\nimport sys, json\nprint(json.dumps(sorted({{n.partition('.')[0] for n in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/")
    modules: list[str] = json.loads(done.stdout.strip().splitlines()[-1])
    return modules


# ---------------------------------------------------------------- who imports whom


def test_a_file_imports_only_from_what_stands_above_it() -> None:
    """The contracts of pyproject.toml, by import-linter."""
    # In a process of its own: it configures logging anew, which silences every logger that there is.
    command = (
        "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(sys.argv[1], no_cache=True))"
    )
    done = subprocess.run([sys.executable, "-c", command, str(ROOT / "pyproject.toml")], capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout
    assert "0 kept" not in done.stdout, "there is a contract to keep"


@pytest.mark.parametrize("folder", FOLDERS)
def test_plug_ins_of_a_folder_never_import_each_other(folder: str, trees: dict[Path, ast.Module]) -> None:
    """Helpers that they share begin with an underscore; a plug-in is found by name, not imported."""
    inside = [f"slimseek.{folder}.{plugin}" for plugin in plugins.names(folder)]
    assert inside
    for path, tree in trees.items():
        if (SOURCE / folder) not in path.parents:
            continue
        for module in imported(tree):
            hit = [plugin for plugin in inside if module == plugin or module.startswith(f"{plugin}.")]
            assert hit == [], f"{name(path)} imports {module}"


# ---------------------------------------------------------------- what loads when


def test_importing_slimseek_loads_nothing() -> None:
    """Not even numpy: of what is installed, slimseek alone."""
    bare = set(in_a_new_process("pass"))
    loaded = set(in_a_new_process("import slimseek")) - bare
    assert loaded <= {"slimseek", *sys.stdlib_module_names}
    assert "slimseek" in loaded


@pytest.mark.parametrize(
    "module", ["errors", "schema", "collection", "measurement", "plugins", "folder", "integers", "recipe", "artifact"]
)
def test_the_ground_floor_loads_nothing_heavy(module: str) -> None:
    assert set(in_a_new_process(f"import slimseek.{module}")) & set(HEAVY) == set()


@pytest.mark.parametrize("arguments", [["--help"], ["compress", "--help"], ["recipe", "int8"], ["--version"]])
def test_help_is_there_without_torch_or_transformers(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['slimseek', *{arguments!r}]\n"
        "from slimseek.cli import main\n"
        "try:\n    main()\nexcept SystemExit as error:\n    assert not error.code, error.code\n"
    )
    assert set(in_a_new_process(code)) & set(HEAVY) == set()


# ---------------------------------------------------------------- size


def test_no_file_is_longer_than_four_hundred_lines() -> None:
    lengths = {name(path): len(path.read_text("utf-8").splitlines()) for path in FILES}
    assert {path: lines for path, lines in lengths.items() if lines > MOST_LINES} == {}


def test_no_function_is_longer_than_sixty_lines(trees: dict[Path, ast.Module]) -> None:
    found = {}
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                lines = node.end_lineno - node.lineno + 1
                if lines > MOST_LINES_OF_A_FUNCTION:
                    found[f"{name(path)}:{node.lineno} {node.name}"] = lines
    assert found == {}


# ---------------------------------------------------------------- what no file does


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_nothing_is_unpickled(trees: dict[Path, ast.Module]) -> None:
    """CASES X1: no pickle by any of its names; numpy's own files are read with ``allow_pickle=False`` alone, those of
    PyTorch as tensors alone.
    """
    banned = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for path, tree in trees.items():
        modules = {module.partition(".")[0] for module in imported(tree)}
        assert modules & banned == set(), name(path)
        for function, call in calls(tree):
            assert function not in ("torch.jit.load", "torch.save"), f"{name(path)}:{call.lineno}"
            assert function not in ("eval", "exec", "yaml.load", "yaml.unsafe_load"), f"{name(path)}:{call.lineno}"
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert given.get("allow_pickle", "False") == "False", f"{name(path)}:{call.lineno}"
            assert function != "torch.load" or given.get("weights_only") == "True", f"{name(path)}:{call.lineno}"


def test_no_file_is_a_script_of_prints(trees: dict[Path, ast.Module]) -> None:
    """Only the command line and the probe that is its own process print."""
    printing = {name(path) for path, tree in trees.items() for function, _ in calls(tree) if function == "print"}
    assert printing <= {"cli/__init__.py", "cli/command.py", "probe.py"}


def test_every_file_says_what_it_is(trees: dict[Path, ast.Module]) -> None:
    for path, tree in trees.items():
        assert ast.get_docstring(tree), name(path)


def test_the_exit_codes_are_those_of_the_design() -> None:
    """0 done, 2 bad input, 3 gate or budget not met, 4 a missing extra, 1 a fault of ours."""
    kinds = {kind.__name__: kind.exit_code for kind in vars(errors).values() if isinstance(kind, type)}
    assert kinds == {
        "SlimseekError": 1,
        "UsageError": 2,
        "NoEffect": 2,
        "ArtifactError": 2,
        "GateFailed": 3,
        "BudgetUnmet": 3,
        "MissingExtra": 4,
    }
    assert all(issubclass(getattr(errors, kind), errors.SlimseekError) for kind in kinds)
    assert issubclass(errors.NoEffect, errors.UsageError)
    assert issubclass(errors.ArtifactError, errors.UsageError)
    assert issubclass(errors.BudgetUnmet, errors.GateFailed)
    missing = errors.MissingExtra("openvino", "openvino")
    assert str(missing) == "openvino is not installed; run: pip install 'slimseek[openvino]'"
    assert (missing.library, missing.extra) == ("openvino", "openvino")


def test_an_absent_library_of_an_extra_is_reported_as_missing_and_others_are_not() -> None:
    """In a process that cannot import usearch; a module of our own that is absent stays a fault of ours."""
    code = (
        "import sys\n"
        "sys.modules['usearch'] = None\n"
        "from slimseek import errors, plugins\n"
        'for call in (\'plugins.load("indexes", "usearch")\', \'plugins.require("slimseek.no_such_module")\'):\n'
        "    try:\n"
        "        eval(call)\n"
        "    except (errors.MissingExtra, ModuleNotFoundError) as error:\n"
        "        print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.splitlines() == [
        "MissingExtra usearch is not installed; run: pip install 'slimseek[index]'",
        "ModuleNotFoundError No module named 'slimseek.no_such_module'",
    ]
