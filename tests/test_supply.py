"""What comes from others: named in the bill of materials, never unpickled, never run, never unpacked elsewhere."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
RUNS = {"eval", "exec", "compile", "__import__"}
UNPACKS = {"extractall", "extract", "unpack_archive"}


def calls(source: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(source.read_text("utf-8"))) if isinstance(node, ast.Call)]


def name_of(call: ast.Call) -> str:
    """``np.load`` of ``np.load(...)``."""
    return ast.unparse(call.func)


def keyword(call: ast.Call, name: str) -> str:
    return next((ast.unparse(given.value) for given in call.keywords if given.arg == name), "")


def unsafe(source: Path) -> list[str]:
    """Calls that would unpickle, run or unpack what a file holds, and imports of what does."""
    found = []
    for call in calls(source):
        name = name_of(call)
        last = name.rpartition(".")[2]
        if (
            name in RUNS
            or last in UNPACKS
            or (name in ("np.load", "numpy.load") and keyword(call, "allow_pickle") != "False")
        ):
            found.append(name)
        if name == "torch.load" and keyword(call, "weights_only") != "True":
            found.append(name)
        if name in ("yaml.load", "yaml.full_load", "yaml.unsafe_load"):
            found.append(name)
        if keyword(call, "trust_remote_code") == "True" or keyword(call, "shell") == "True" or name == "os.system":
            found.append(name)
    for node in ast.walk(ast.parse(source.read_text("utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [])  # fmt: skip
        found += [name for name in names if name.partition(".")[0] in PICKLES]
    return found


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.relative_to(ROOT / "src").as_posix())
def test_nothing_is_unpickled_run_or_unpacked(source: Path) -> None:
    assert unsafe(source) == []


@pytest.mark.parametrize(
    "text",
    ["import pickle", "from joblib import load", "np.load(p)", "np.load(p, allow_pickle=True)", "torch.load(p)",
     "yaml.load(t, yaml.Loader)", "eval(t)", "archive.extractall(p)", "shutil.unpack_archive(p)",
     "A.from_pretrained(p, trust_remote_code=True)", "subprocess.run(c, shell=True)"],
)  # fmt: skip
def test_what_would_be_found(text: str, tmp_path: Path) -> None:
    """The walk itself sees each of them."""
    (tmp_path / "a.py").write_text(text)
    assert len(unsafe(tmp_path / "a.py")) == 1


def test_the_loader_of_recipes_makes_no_object_of_python() -> None:
    import yaml

    from slimseek import recipe

    assert issubclass(recipe._Loader, yaml.SafeLoader)
    assert not issubclass(recipe._Loader, yaml.UnsafeLoader)


def test_templates_escape_by_themselves_and_pages_write_no_html() -> None:
    """Every template has the suffix that is escaped; only charts, which are built and escaped here, are taken as they
    are; pages set texts and never HTML.
    """
    report = (ROOT / "src" / "slimseek" / "report" / "_page.py").read_text()
    assert "autoescape=True" in report
    for file in (ROOT / "src" / "slimseek").rglob("*"):
        if file.suffix in (".html", ".js", ".mjs", ".j2") and file.is_file():
            text = file.read_text("utf-8")
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
            ), file
            assert "autoescape false" not in text, file


def test_pages_allow_nothing_from_outside() -> None:
    pages = resources.files("slimseek") / "page"
    for page in (
        pages / "search.html",
        *(entry for entry in (pages / "web").iterdir() if entry.name.endswith(".html")),
    ):
        text = page.read_text("utf-8")
        assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", text), page
        assert not re.search(r"\son[a-z]+\s*=", re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)), page


def direct() -> set[str]:
    """Names of the libraries that slimseek and its usual extras ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["dev"]]
    for extra in re.findall(r"[\w]+", next(line for line in extras["all"])):
        asked += extras.get(extra, [])
    names = {
        re.split(r"[\[<>=; ]", one)[0] for one in asked if not one.startswith("slimseek") and "sys_platform" not in one
    }
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


def test_the_bill_of_materials_names_every_library_that_is_asked_for(tmp_path: Path) -> None:
    tool = Path(sys.executable).with_name("cyclonedx-py")
    if not tool.is_file():
        pytest.skip("cyclonedx-bom is not installed")
    command = [str(tool), "environment", sys.executable, "--pyproject", str(ROOT / "pyproject.toml"), "--of", "JSON",
               "--output-file", str(tmp_path / "sbom.json")]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    found = json.loads((tmp_path / "sbom.json").read_text())
    assert found["bomFormat"] == "CycloneDX"
    assert found["metadata"]["component"]["name"] == "slimseek"
    named = {re.sub(r"[-_.]+", "-", one["name"]).lower() for one in found["components"]}
    assert len(direct()) > 20
    assert direct() - named == set()
    assert all(one.get("version") for one in found["components"] if one["name"].lower() in direct())


def test_an_audit_that_cannot_ask_says_so(tmp_path: Path) -> None:
    """In the place of pip-audit stands one that finds no database."""
    import shutil

    (tmp_path / "python").symlink_to(sys.executable)
    (tmp_path / "pip-audit").write_text(
        '#!/bin/sh\necho \'{"dependencies": [{"name": "a", "skip_reason": "unknown"}]}\'\n'
    )
    (tmp_path / "pip-audit").chmod(0o755)
    shutil.copy(ROOT / ".ci" / "audit.py", tmp_path / "audit.py")
    run = "import sys; sys.executable = sys.argv[1]; import runpy; runpy.run_path(sys.argv[2], run_name='__main__')"
    command = [sys.executable, "-c", run, str(tmp_path / "python"), str(tmp_path / "audit.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.startswith("audit: not made: no database knows")) == (0, True), done
    known = {"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}]}
    (tmp_path / "pip-audit").write_text(f"#!/bin/sh\necho '{json.dumps(known)}'\n")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "a 1: PYSEC-1; mended in 2" in done.stdout
