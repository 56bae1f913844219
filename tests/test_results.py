"""The figures that README and docs print are those of ``benchmarks/results``; what is measured again is compared."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def results() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_results", BENCHMARKS / "check_results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_what_is_printed_was_measured(results: ModuleType) -> None:
    assert results.printed() == []
    assert len(results.tables()) > 20


def test_a_figure_that_was_not_measured_is_found(
    results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs").mkdir()
    for name in {"README.md", *(claim.document for claim in results.CLAIMS)}:
        (tmp_path / name).write_text((ROOT / name).read_text("utf-8"), "utf-8")
    readme, voice = tmp_path / "README.md", tmp_path / "docs" / "voice.md"
    readme.write_text(readme.read_text("utf-8").replace("| 99.6% (99.0% to", "| 99.7% (99.0% to"), "utf-8")
    voice.write_text(voice.read_text("utf-8").replace("accuracy .466", "accuracy .476"), "utf-8")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    wrong = results.printed()
    assert len(wrong) == 2
    assert "99.7% (99.0% to" in wrong[0]
    assert wrong[1].startswith("docs/voice.md: it does not say: accuracy .466 in float32")


@pytest.mark.parametrize("page", ["tables.py docs/quantization.md", "pruning_page.py docs/pruning.md"])
def test_pages_of_tables_are_those_that_the_results_give(page: str, tmp_path: Path) -> None:
    script, document = page.split()
    out = tmp_path / "page.md"
    subprocess.run([sys.executable, str(BENCHMARKS / script), "--out", str(out)], cwd=ROOT, check=True, timeout=60)
    assert out.read_text("utf-8") == (ROOT / document).read_text("utf-8")


def test_a_figure_within_its_tolerance_is_no_difference(results: ModuleType) -> None:
    before = {
        "environment": {"cores": 2},
        "a": {"kept": 0.98, "size_bytes": 1000, "ms_1": 2.0, "kept_interval": [0, 1]},
    }
    after = {"environment": {"cores": 8}, "a": {"kept": 0.97, "size_bytes": 1019, "ms_1": 2.9, "kept_interval": [5, 6]}}
    assert results.differences(before, after) == (5, [])
    worse = {"a": {"kept": 0.95, "size_bytes": 1021, "ms_1": 3.1}}
    count, wrong = results.differences(before, worse)
    assert count == 3
    assert [line.partition(":")[0] for line in wrong] == ["a.kept", "a.ms_1", "a.size_bytes"]
    assert wrong[0] == "a.kept: 0.98 was measured, now 0.95"
    assert results.differences(before, {"a": {"kept": float("nan")}})[1] == ["a.kept: 0.98 was measured, now nan"]


def test_a_benchmark_is_run_again_and_one_that_fails_is_a_difference(
    results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "fake.py"
    fake.write_text("import sys; open(sys.argv[-1], 'w').write(open(sys.argv[1]).read().replace('0.466', '0.266'))")
    old = BENCHMARKS / "results" / "keywords.json"
    run = results.Run(file="keywords.json", command=(str(fake), str(old)), trains=True)
    assert results.again(run, tmp_path) == ["keywords.json: keyword spotter.float32: 0.466 was measured, now 0.266"]
    broken = results.Run(file="other.json", command=(str(tmp_path / "absent.py"),), trains=False)
    assert results.again(broken, tmp_path)[0].endswith("absent.py ended with 2")


def test_every_run_is_of_a_result_and_a_script_that_are_there(results: ModuleType) -> None:
    for run in results.RUNS:
        assert (BENCHMARKS / run.command[0]).is_file()
        assert json.loads((BENCHMARKS / "results" / run.file).read_bytes())
    assert any(not run.trains for run in results.RUNS)
