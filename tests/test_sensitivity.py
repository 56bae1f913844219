"""What each layer can lose: figures against zeros set by hand, a run that is killed and goes on, what is refused, and
what table, page and command show.
"""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from slimseek import api, choose, data, evaluate, plugins, recipe, sensitivity
from slimseek.cli import show
from slimseek.errors import ArtifactError, UsageError
from slimseek.inputs.text import TextInput
from slimseek.measurement import Change, Measurement
from slimseek.methods.prune._alone import SingleLayer
from slimseek.methods.prune._forward import Pruned
from slimseek.report import sensitivity as page
from slimseek.sensitivity import LayerSensitivity, Point, Sensitivity, Settings
from small import CORPUS, Page, tiny_bert, tiny_collection

INNER = "transformer.encoder.layer.{}.intermediate.dense.weight"
TOTAL = 6
"""Two layers, three amounts."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("home")
    tiny_bert(path / "model")
    tiny_collection(path / "collection")
    return path


@pytest.fixture(scope="module")
def whole(home: Path) -> Sensitivity:
    return measured(home, "whole")


def measured(
    home: Path, out: str, model: str = "model", collection: str = "collection", **settings: Any
) -> Sensitivity:
    force = settings.pop("force", False)
    return api.sensitivity(home / model, home / collection, home / out, Settings(**settings), threads=1, force=force)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the encoders whose quality was measured."""
    names: list[str] = []
    plain = evaluate.quality

    def counted(encoder: Any, *rest: Any) -> Any:
        names.append(encoder.name)
        return plain(encoder, *rest)

    monkeypatch.setattr(evaluate, "quality", counted)
    return names


# ---------------------------------------------------------------- what is measured


def test_a_layer_that_does_nothing_loses_nothing_at_any_amount(home: Path) -> None:
    tiny_bert(home / "idle")
    file = home / "idle" / "model.safetensors"
    tensors = load_file(file)
    read_by = next(name for name in tensors if name.endswith("layer.1.output.dense.weight"))
    tensors[read_by] = np.zeros_like(tensors[read_by])
    save_file(tensors, file, {"format": "pt"})
    found = measured(home, "idle-out", "idle", amounts=(0.25, 0.5, 0.9))
    busy, idle = found.layers
    assert [point.removed for point in idle.points] == [16, 32, 56]
    for point in idle.points:
        assert point.change is not None
        assert (point.change.relative, point.change.interval) == (0.0, (0.0, 0.0))
        assert point.cosine == pytest.approx(1, abs=1e-6)
    assert busy.points[-1].cosine is not None
    assert busy.points[-1].cosine < 0.999


def test_a_point_is_what_zeros_in_the_least_rows_give(home: Path) -> None:
    """By ``l1``, the 32 channels of least absolute sums, told and zeroed by hand; the vectors by transformers' code."""
    found = measured(home, "zeros", importance="l1", amounts=(0.5,))
    model, collection = choose.model(home / "model"), data.load(str(home / "collection"))
    splits = data.split(collection)
    dev, items = data.search_set(collection, splits.dev, "dev"), data.samples(collection, splits).calibration
    original = choose.encoder(model, "original", 1)
    for number, layer in enumerate(found.layers):
        assert (layer.name, layer.width) == (INNER.format(number), 64)
        assert layer.parameters == 64 * (32 + 1 + 32)
        tensors = {name: np.array(tensor) for name, tensor in model.tensors.items()}
        rows, bias = tensors[layer.name], tensors[layer.name.replace("weight", "bias")]
        columns = tensors[layer.name.replace("intermediate", "output")]
        sums = np.abs(rows).sum(1) + np.abs(bias) + np.abs(columns).sum(0)
        columns[:, np.argsort(sums)[:32]] = 0
        zeroed = choose.encoder(dataclasses.replace(model, tensors=tensors), "zeroed", 1)
        [point] = layer.points
        assert (point.removed, point.parameters) == (32, layer.parameters // 2)
        cosines = (zeroed.documents(items) * original.documents(items)).sum(1)
        assert point.cosine == pytest.approx(cosines.mean(), abs=1e-5)
        scores = [evaluate.quality(encoder, dev, ["ndcg@10"]).get("ndcg@10") for encoder in (original, zeroed)]
        assert point.change == evaluate.compare(*scores)
        assert found.original == scores[0]


def test_what_a_layer_loses_alone_is_what_the_step_gives_with_skip(home: Path) -> None:
    found = measured(home, "heads", method="prune.heads", amounts=(0.5,), importance="l2")
    model, collection = choose.model(home / "model"), data.load(str(home / "collection"))
    items = data.samples(collection, data.split(collection)).calibration
    original = choose.encoder(model, "original", 1).documents(items)
    for layer, other in zip(found.layers, reversed(found.layers), strict=True):
        step = plugins.load("methods", "prune.heads")(amount=0.5, skip=(other.name,))
        left = step.apply(model, data.samples(collection, data.split(collection)))
        assert left.tensors[other.name].shape == (32, 32)
        assert left.tensors[layer.name].shape == (16, 32)
        cosine = evaluate.cosines(original, choose.encoder(left, "left", 1).documents(items)).mean()
        assert layer.points[0].cosine == pytest.approx(cosine, abs=1e-6)


def test_test_queries_are_never_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever becomes numbers goes through ``rows``: calibration, documents and development queries."""
    texts: set[str] = set()
    plain = TextInput.rows

    def seen(self: TextInput, given: Any, *rest: Any) -> Any:
        texts.update(given)
        return plain(self, given, *rest)

    monkeypatch.setattr(TextInput, "rows", seen)
    measured(home, "seen")
    collection = data.load(str(home / "collection"))
    splits = data.split(collection)
    assert {collection.queries[query] for query in splits.dev} <= texts
    assert set(CORPUS.values()) <= {text.strip() for text in texts}
    assert {collection.queries[query] for query in splits.test} & texts == set()


def test_shares_that_come_to_the_same_units_are_measured_once(home: Path, calls: list[str]) -> None:
    found = measured(home, "same", method="prune.heads", amounts=(0.1, 0.25, 0.4), importance="l2")
    for layer in found.layers:
        none, first, second = layer.points
        assert (none.removed, none.change, none.reason) == (0, None, "so small a share of its units cannot go")
        assert second == msgspec.structs.replace(first, amount=0.4)
        assert first.removed == 1
    assert len(calls) == 1 + 2


def test_a_layer_that_cannot_be_measured_says_why_and_the_others_go_on(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = SingleLayer.without

    def refused(self: SingleLayer, count: int) -> Pruned:
        if count == 16 and "layer.0" in self.name:
            return Pruned(self.whole.model, frozenset(), {self.name: "its vectors are off by 3"})
        return plain(self, count)

    def broken(self: Any, *rest: Any, **named: Any) -> Any:
        if "48 units" in self.name:
            raise UsageError("gave zero vectors for 2 items")
        return vectors(self, *rest, **named)

    vectors = choose.Encoder.vectors
    monkeypatch.setattr(SingleLayer, "without", refused)
    monkeypatch.setattr(choose.Encoder, "vectors", broken)
    found = measured(home, "broken")
    assert [point.reason for point in found.layers[0].points] == [
        "its vectors are off by 3", "", "gave zero vectors for 2 items"
    ]  # fmt: skip
    assert [point.reason for point in found.layers[1].points] == ["", "", "gave zero vectors for 2 items"]
    shown = text_of(found, home)
    assert f"{INNER.format(0)}, 25 %: its vectors are off by 3" in shown
    assert "its vectors are off by 3" in page.render(found)


# ---------------------------------------------------------------- killed, and again


@pytest.mark.parametrize("points", [0, 1, 4])
def test_a_run_that_was_killed_measures_the_rest_and_gives_the_same_file(
    points: int, home: Path, whole: Sensitivity, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = f"killed-{points}"
    counted = evaluate.quality

    def killed(encoder: Any, *rest: Any) -> Any:
        if len(calls) == 1 + points:
            raise KeyboardInterrupt
        return counted(encoder, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "quality", killed)
        with pytest.raises(KeyboardInterrupt):
            measured(home, out)
    file = home / out / sensitivity.FILE
    if points:
        half = msgspec.json.decode(file.read_bytes(), type=Sensitivity)
        assert half.left == TOTAL - points
        assert [layer.points for layer in half.layers] == [
            layer.points[: max(0, points - 3 * number)] for number, layer in enumerate(whole.layers)
        ]
    calls.clear()
    assert measured(home, out) == whole
    assert len(calls) == TOTAL - points + (not points)
    assert "original" not in calls[:1] or not points
    assert file.read_bytes() == (home / "whole" / sensitivity.FILE).read_bytes()


def test_a_file_that_is_complete_is_not_measured_again_unless_forced(
    home: Path, whole: Sensitivity, calls: list[str]
) -> None:
    assert measured(home, "whole") == whole
    assert calls == []
    assert measured(home, "whole", force=True) == whole
    assert len(calls) == 1 + TOTAL


def test_a_file_of_something_else_is_refused_unless_forced(home: Path, whole: Sensitivity) -> None:
    tiny_bert(home / "second", seed=1)
    tiny_collection(home / "changed")
    with (home / "changed" / "corpus.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "d7", "title": "", "text": "One more."}) + "\n")
    file = home / "whole" / sensitivity.FILE
    for given, said in [
        ({"model": "second"}, "is of another model"),
        ({"collection": "changed"}, "is of another collection"),
        ({"amounts": (0.25, 0.5)}, "is of other settings (amounts 0.25, 0.5, 0.75 and not 0.25, 0.5)"),
        ({"method": "prune.heads"}, "is of other settings (method prune.channels and not prune.heads)"),
        ({"seed": 1}, "is of other settings (seed 0 and not 1)"),
    ]:
        with pytest.raises(UsageError) as error:
            measured(home, "whole", **given)
        assert str(error.value) == f"{file} {said}; choose another --out, or add --force to measure anew"
    before = file.read_bytes()
    file.write_bytes(before.replace(b'"made_with": "', b'"made_with": "0.0.'))
    with pytest.raises(UsageError, match=r"is of slimseek 0\.0\."):
        measured(home, "whole")
    file.write_bytes(before[:100])
    with pytest.raises(ArtifactError, match="not valid JSON"):
        measured(home, "whole")
    assert measured(home, "whole", model="second", force=True).model == "second"
    assert measured(home, "whole", force=True) == whole


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "prune.layers"}, "method is 'prune.layers'; prune.channels and prune.heads are allowed"),
        ({"amounts": ()}, "amounts are empty; rising shares above 0 and below 1 are allowed"),
        ({"amounts": (0.5, 1.0)}, "amounts are 0.5, 1; rising shares above 0 and below 1 are allowed"),
        ({"amounts": (0.5, 0.25)}, "amounts are 0.5, 0.25; rising shares above 0 and below 1 are allowed"),
        ({"max_queries": 1}, "max_queries is 1; 2 or more is allowed"),
        ({"max_documents": 0}, "max_documents is 0; 1 or more is allowed"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        Settings(**settings)
    assert str(error.value) == f"sensitivity: {message}"


def test_an_unknown_measure_is_refused_before_any_work(home: Path, calls: list[str]) -> None:
    with pytest.raises(UsageError, match="importance is 'l3'; known: "):
        measured(home, "unknown", importance="l3")
    with pytest.raises(UsageError, match="unknown metric 'bleu'"):
        Settings(metric="bleu@4")
    assert calls == []
    assert not (home / "unknown").exists()


# ---------------------------------------------------------------- what is said


def changed(relative: float, half: float) -> Change:
    return Change(metric="ndcg@10", before=0.5, after=0.5 * (1 + relative), relative=relative,
                  interval=(relative - half, relative + half), lower_bound=relative - half, n=200)  # fmt: skip


def made(*losses: tuple[float, float], half: float = 0.02) -> Sensitivity:
    """Layers a.0.weight, a.1.weight ... with these changes at 0.25 and 0.5."""
    original = Measurement(name="ndcg@10", value=0.5, n=200, interval=(0.45, 0.55), per_query=(0.5,) * 200)
    layers = tuple(
        LayerSensitivity(name=f"a.{number}.weight", width=64, parameters=4160, points=tuple(
            Point(amount=amount, removed=round(64 * amount), parameters=65 * round(64 * amount),
                  change=changed(loss, half), cosine=1 + loss / 10)
            for amount, loss in zip((0.25, 0.5), pair, strict=True)))
        for number, pair in enumerate(losses)
    )  # fmt: skip
    return Sensitivity(format_version=1, made_with="0", model="tiny", model_sha256="", collection="small, dev",
                       collection_sha256="", settings=Settings(amounts=(0.25, 0.5)), documents=300, original=original,
                       layers=layers)  # fmt: skip


@pytest.mark.parametrize(
    ("found", "said", "skipped"),
    [
        (made((-0.01, -0.01), (-0.1, -0.3), (-0.03, -0.2)),
         "Without 25 % of its channels, 2 of 3 layers lose nDCG@10 for sure; keep them whole with skip: a.1.weight, "
         "a.2.weight", ["a.1.weight", "a.2.weight"]),
        (made((-0.01, -0.01), (0.0, -0.03)),
         "Without 50 % of its channels, 1 of 2 layers lose nDCG@10 for sure; keep them whole with skip: a.1.weight",
         ["a.1.weight"]),
        (made((-0.1, -0.2), (-0.03, -0.04)),
         "Every layer loses nDCG@10 for sure without 25 % of its channels: take less, or train afterwards", None),
        (made((-0.01, -0.2), (0.01, -0.04)),
         "No layer loses nDCG@10 for sure without 25 % of its channels, and every one does without 50 % of its "
         "channels: stay below that, or train afterwards", None),
        (made((-0.01, -0.01), (0.01, 0.04)),
         "No layer loses nDCG@10 for sure without 50 % of its channels, on 200 queries: these figures spare none",
         None),
    ],
)  # fmt: skip
def test_what_to_do_with_it(found: Sensitivity, said: str, skipped: list[str] | None) -> None:
    assert page.verdict(found) == said
    text = page.step(found)
    assert bool(text) == (skipped is not None)
    if skipped is not None:
        [step] = recipe.parse(f"version: 1\nsteps:\n  {text}\n").steps
        assert recipe.build(step).skip == tuple(skipped)  # type: ignore[attr-defined]


def test_the_most_sensitive_layer_comes_first_and_the_cosine_breaks_ties() -> None:
    found = made((-0.01, -0.01), (-0.1, -0.3), (-0.01, -0.01))
    assert [layer.name for layer in found.by_sensitivity] == ["a.1.weight", "a.0.weight", "a.2.weight"]
    last = found.layers[2]
    points = tuple(msgspec.structs.replace(point, cosine=0.5) for point in last.points)
    tied = msgspec.structs.replace(found, layers=(*found.layers[:2], msgspec.structs.replace(last, points=points)))
    assert [layer.name for layer in tied.by_sensitivity] == ["a.1.weight", "a.2.weight", "a.0.weight"]


def text_of(found: Sensitivity, out: Path) -> str:
    console = Console(file=StringIO(), width=160)
    show.sensitivity(found, console, out)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_the_table_shows_every_layer_with_its_figures(whole: Sensitivity) -> None:
    shown = text_of(whole, Path("out"))
    for number, layer in enumerate(whole.layers):
        [line] = [line for line in shown.splitlines() if f"{number}.intermediate.dense" in line and "│" in line]
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        assert cells[1:3] == ["64", "4,160"]
        for cell, point in zip(cells[3:6], layer.points, strict=True):
            assert point.change is not None
            assert cell.removesuffix(" *") == f"{100 * (1 + point.change.relative):.1f} %"
            assert cell.endswith("*") == (point.change.interval[1] < 0)
        assert layer.points[-1].cosine == pytest.approx(float(cells[6]), abs=1e-5)
    assert page.verdict(whole) in shown
    assert "out/sensitivity.html" in shown


def test_long_tables_are_cut_and_say_so() -> None:
    found = made(*[(-0.01 * number, -0.01 * number) for number in range(30)])
    shown = text_of(found, Path("out"))
    assert len([line for line in shown.splitlines() if line.startswith("│")]) == show.MOST_LAYERS
    assert "│ 29 " in shown
    assert "10 less sensitive layers are in out/sensitivity.html" in shown


# ---------------------------------------------------------------- the page


class SensitivityPage(Page):
    """Lines and circles of its charts need no end."""

    void = frozenset({"meta", "circle", "line", "polyline", "br"})


def test_the_page_is_whole_and_shows_every_layer_with_its_figures(home: Path, whole: Sensitivity) -> None:
    text = (home / "whole" / page.PAGE).read_text("utf-8")
    parsed = SensitivityPage(text)
    assert page.verdict(whole) in parsed.words
    assert len(parsed.all("svg")) == len(whole.layers)
    assert len(parsed.all("circle")) == TOTAL
    for layer in whole.layers:
        assert parsed.words.count(layer.name) >= 2, "as a chart's title and in the table"
        for point in layer.points:
            assert point.change is not None
            low, high = (f"{100 * (1 + end):.1f}" for end in point.change.interval)
            kept = f"{100 * (1 + point.change.relative):.1f} % kept, interval {low} to {high}"
            assert f"without {point.removed} of 64: {kept}" in parsed.words
    identifiers = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def test_the_page_runs_and_loads_nothing_and_knows_its_colours(whole: Sensitivity) -> None:
    text = page.render(whole)
    assert "<script" not in text
    assert not [attributes for _, attributes in SensitivityPage(text).tags if {"src", "href"} & attributes.keys()]
    assert set(re.findall(r"url\(([^)]*)\)", text)) == set()
    themes = [set(re.findall(r"--([a-z]+):", block)) for block in re.findall(r":root \{(.*?)\}", text, re.DOTALL)]
    used = set(re.findall(r"var\(--([a-z]+)\)", text)) - {"serif", "sans", "mono"}
    assert len(themes) == 2
    assert all(used <= theme for theme in themes)


def test_names_are_escaped() -> None:
    found = msgspec.structs.replace(made((-0.1, -0.2), (0.0, 0.0)), model="<b>&", collection="<script>x</script>, dev")
    layer = msgspec.structs.replace(found.layers[0], name="<script>.1.weight")
    text = page.render(msgspec.structs.replace(found, layers=(layer, found.layers[1])))
    assert "<script" not in text
    assert "&lt;script&gt;.1.weight" in text
    SensitivityPage(text)


def test_points_lie_where_their_figures_say() -> None:
    """0 at the left, the greatest amount at the right; on one scale, on which more lost lies lower."""
    first, second = page.panels(made((-0.01, -0.05), (-0.1, -0.38)))
    assert (first.label, second.label) == ("1", "0")
    assert [tick for _, tick in first.ticks] == ["100 %", "90 %", "80 %", "70 %", "60 %"]
    heights = [height for height, _ in first.ticks]
    assert heights[-1] == page.BOTTOM
    spaces = np.diff(heights)
    assert np.allclose(spaces, spaces[0], atol=0.11)
    lost, little = first.dots[0], second.dots[0]
    assert lost.y == pytest.approx(heights[1], abs=0.1)
    assert little.y == pytest.approx(heights[0] + 0.1 * spaces[0], abs=0.1)
    assert lost.high < lost.y < lost.low
    assert lost.x - page.LEFT == pytest.approx((first.dots[1].x - page.LEFT) / 2, abs=0.1)
    assert first.line == f"{page.LEFT:g},{heights[0]:g} {lost.x:g},{lost.y:g} {first.dots[1].x:g},{first.dots[1].y:g}"


# ---------------------------------------------------------------- the command


def slimseek(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from slimseek.cli import main; main()", "sensitivity", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=home, check=False)


def test_the_command_measures_shows_and_refuses(home: Path) -> None:
    given = ["model", "--data", "collection", "--out", "command", "--threads", "1", "--importance", "l2"]
    done = slimseek(home, *given, "--amount", "0.5", "--amount", "0.25", "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(done.stdout, type=Sensitivity)
    assert found == msgspec.json.decode((home / "command" / sensitivity.FILE).read_bytes(), type=Sensitivity)
    assert found.settings == Settings(amounts=(0.25, 0.5), importance="l2")
    assert (found.left, len(found.layers)) == (0, 2)
    assert (home / "command" / page.PAGE).is_file()
    again = slimseek(home, *given, "--amount", "0.25", "--amount", "0.5")
    assert again.returncode == 0, again.stderr
    assert "holds all 4 points: nothing is left to measure" in again.stderr
    assert page.verdict(found) in again.stdout
    other = slimseek(home, *given)
    assert other.returncode == 2
    [line] = [line for line in other.stderr.splitlines() if line.startswith("slimseek:")]
    assert line.startswith("slimseek: command/sensitivity.json is of other settings (amounts 0.25, 0.5 and not ")
