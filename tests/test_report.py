"""The report: hand-worked verdicts, a page that is whole, safe and the same in both themes, charts only with data."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from slimseek import report
from slimseek.errors import MissingExtra
from slimseek.measurement import (
    Change,
    Comparison,
    Environment,
    GateResult,
    Measurement,
    QueryExample,
    Report,
    StepRecord,
)
from slimseek.report import _format
from small import Page

MACHINE = Environment(
    cpu="Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
    cores=2,
    threads=2,
    instruction_sets=("avx2", "avx512f", "avx512_vnni", "amx_int8"),
    memory_bytes=16_760_000_000,
    system="Linux 6.1.0 x86_64",
    python="3.11.7",
    versions={"slimseek": "0.1.0", "onnxruntime": "1.32.0", "numpy": "2.4.6", "torch": "2.13.0"},
)
UNITS = {
    "size": "B",
    "size_weights": "B",
    "size_rest": "B",
    "macs": "MAC",
    "latency_p50": "ms",
    "latency_p95": "ms",
    "latency_p99": "ms",
    "throughput": "items/s",
    "cold_start": "s",
    "peak_memory": "B",
}
HIGHER = {"throughput", "invariance"}


def subject(name: str, machine: Environment = MACHINE, **figures: float | Measurement) -> Report:
    """A report; a metric is given as a Measurement under any keyword."""
    measurements = tuple(
        value
        if isinstance(value, Measurement)
        else Measurement(name=key, value=value, unit=UNITS.get(key, ""), higher_is_better=key in HIGHER, n=50)
        for key, value in figures.items()
    )
    return Report(subject=name, environment=machine, measurements=measurements)


def metric(
    name: str, value: float, half: float = 0.04, per_query: tuple[float, ...] | None = None, n: int = 300
) -> Measurement:
    return Measurement(name=name, value=value, n=n, interval=(value - half, value + half), per_query=per_query)


def change(
    relative: float = -0.009,
    interval: tuple[float, float] = (-0.018, 0.001),
    n: int = 300,
    n_needed: int | None = None,
    name: str = "ndcg@10",
) -> Change:
    return Change(
        metric=name,
        before=0.645,
        after=0.645 * (1 + relative),
        relative=relative,
        interval=interval,
        lower_bound=interval[0] + 0.001,
        n=n,
        n_needed=n_needed,
    )


def step(name: str, before: int, after: int, quality: Change | None = None, **fields: object) -> StepRecord:
    given = {
        "parameters": {},
        "changed": ("embeddings.word_embeddings.weight",),
        "parameters_before": 22_700_000,
        "parameters_after": 22_700_000,
        "macs_before": 1_420_000_000,
        "macs_after": 1_420_000_000,
        "seconds": 1.5,
    } | fields
    return StepRecord(
        step=name, bytes_before=before, bytes_after=after, compression_ratio=after / before, quality=quality, **given
    )


def before_queries() -> tuple[float, ...]:
    return tuple((i * 37 % 101) / 100 for i in range(300))


def after_queries() -> tuple[float, ...]:
    return tuple(
        max(0.0, v - 0.06 * (i % 5)) if i % 7 == 0 else min(1.0, v + 0.05 * (i % 4)) if i % 6 == 0 else v
        for i, v in enumerate(before_queries())
    )


def full() -> Comparison:
    """A run with everything in it."""
    original = subject(
        "MiniLM",
        ndcg=metric("ndcg@10", 0.645, 0.041, before_queries()),
        recall=metric("recall@100", 0.925, 0.026),
        mrr=metric("mrr@10", 0.611, 0.045),
        size=90_870_000,
        size_weights=90_260_000,
        size_rest=610_000,
        parameters=22_565_376,
        macs=1_420_000_000,
        latency_p50=12.09,
        latency_p95=Measurement(
            name="latency_p95", value=13.4, unit="ms", higher_is_better=False, n=200, interval=(13.1, 13.9)
        ),
        latency_p99=15.2,
        throughput=212.0,
        cold_start=0.84,
        peak_memory=412_000_000,
        invariance=0.9999998,
    )
    compressed = subject(
        "MiniLM int4, 6 layers",
        ndcg=metric("ndcg@10", 0.6392, 0.042, after_queries()),
        recall=metric("recall@100", 0.921, 0.026),
        mrr=metric("mrr@10", 0.6062, 0.045),
        size=9_640_000,
        size_weights=9_010_000,
        size_rest=630_000,
        parameters=17_100_000,
        macs=1_420_000_000,
        latency_p50=4.65,
        latency_p95=5.31,
        latency_p99=6.02,
        throughput=498.0,
        cold_start=0.31,
        peak_memory=148_000_000,
        invariance=0.99993,
    )
    alternatives = (
        subject(
            "dynamic int8 of onnxruntime",
            ndcg=metric("ndcg@10", 0.632),
            size=23_100_000,
            latency_p50=5.2,
            throughput=402.0,
        ),
        subject("float16", ndcg=metric("ndcg@10", 0.645), size=45_700_000, latency_p50=14.8, throughput=190.0),
        subject(
            "potion-base-8M", ndcg=metric("ndcg@10", 0.559), size=30_600_000, latency_p50=0.19, throughput=21_000.0
        ),
    )
    settings = {"bits": 4, "granularity": "group", "group_size": 32, "symmetric": True, "rounding": "gptq"}
    records = (
        step(
            "simplify.vocabulary",
            90_260_000,
            68_400_000,
            change(0.0, (-0.001, 0.001), 120),
            parameters={"min_count": 1},
            parameters_after=17_100_000,
            notes=("14,210 of 30,522 tokens kept; 0.02 % of the test texts' tokens are now unknown.",),
        ),
        step(
            "quantize.weights_int",
            68_400_000,
            9_300_000,
            change(-0.0071, (-0.016, 0.002), 120),
            parameters=settings,
            error_mean=0.00213,
            error_max=0.0412,
            sqnr_db=21.37,
            seconds=184.2,
            gates=(GateResult(gate="finite", status="passed", detail="no NaN or infinity"),),
        ),
        step(
            "quantize.activations_int",
            9_300_000,
            9_010_000,
            change(-0.0093, (-0.019, 0.001), 120),
            parameters={"mode": "dynamic", "layers": [f"encoder.layer.{i}.attention.self.query" for i in range(6)]},
            error_mean=0.00113,
            error_max=0.0312,
            sqnr_db=34.6,
            seconds=22.9,
        ),
    )
    examples = (
        QueryExample(
            query="0-dimensional biomaterials show inductive properties. <script>alert('x')</script>",
            before=(
                ("Nanoparticles & <b>stem cells</b>", True),
                ("Bone tissue engineering with graphene", False),
                ("Inductive scaffolds", False),
            ),
            after=(
                ("Bone tissue engineering with graphene", False),
                ("Nanoparticles & <b>stem cells</b>", True),
                ("Silk", False),
            ),
            score_before=1.0,
            score_after=0.631,
        ),
        QueryExample(
            query="Vitamin D deficiency is unrelated to birth weight",
            before=(("Maternal vitamin D and the newborn", False), ("Birth weight in twins", False)),
            after=(
                ("Maternal vitamin D and birth weight: a cohort of 3,960 mothers", True),
                ("Birth weight in twins", False),
            ),
            score_before=0.0,
            score_after=1.0,
        ),
    )
    return Comparison(
        collection="scifact, test",
        original=original,
        compressed=compressed,
        alternatives=alternatives,
        changes=(
            change(),
            change(-0.0043, (-0.0112, 0.0019), name="recall@100"),
            change(-0.0079, (-0.0201, 0.0049), name="mrr@10"),
        ),
        gates=(
            GateResult(
                gate="quality",
                status="passed",
                detail="nDCG@10 lost 0.9 %, lower bound −1.7 %, allowed −2 %",
                value=-0.017,
                limit=-0.02,
            ),
            GateResult(gate="invariance", status="passed", detail="least cosine 0.99993, same first 10; asked 0.999"),
            GateResult(gate="smaller and faster", status="passed", detail="9.4 times smaller, 2.6 times faster"),
        ),
        records=records,
        bytes_before={"token table": 46_880_000, "attention": 14_200_000, "feed-forward": 28_400_000, "other": 780_000},
        bytes_after={"token table": 3_600_000, "attention": 1_900_000, "feed-forward": 3_400_000, "other": 110_000},
        examples=examples,
        command="slimseek compress minilm --data collections/scifact --max-size 10MB --max-loss 2% --out small/",
        notes=("Timings were taken with both models in turn, 200 queries each, after 20 warm-up queries.",),
    )


def minimal() -> Comparison:
    """A run of which nothing is known but two sizes."""
    return Comparison(
        collection="tiny", original=subject("tiny", size=2_000_000), compressed=subject("tiny", size=1_000_000)
    )


def having(comparison: Comparison, **changed: object) -> Comparison:
    return msgspec.structs.replace(comparison, **changed)


def pair(before: dict[str, float], after: dict[str, float], **fields: object) -> Comparison:
    return Comparison(collection="c", original=subject("M", **before), compressed=subject("M small", **after), **fields)


# ---------------------------------------------------------------- the sentence


def test_the_verdict_of_the_design() -> None:
    # 90.87 / 9.64 = 9.426; 12.09 / 4.65 = 2.6; 1 - 0.009 = 0.991; 1 - 0.018 = 0.982; 1 + 0.001 = 1.001
    assert report.verdict(full()) == (
        "MiniLM: 90.9 → 9.6 MB, 9.4 times smaller; 2.6 times faster; "
        "nDCG@10 99.1 % kept, interval 98.2 to 100.1, n = 300"
    )


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({"size": 90e6}, {"size": 45e6}, "90.0 → 45.0 MB, 2.0 times smaller"),
        ({"size": 2_327_524}, {"size": 2_376_297}, "2.3 → 2.4 MB, 1.02 times larger"),
        ({"size": 10e6}, {"size": 10e6}, "10.0 → 10.0 MB, no smaller"),
        ({"size": 1.3e9}, {"size": 650e3}, "1,300 → 0.65 MB, 2,000 times smaller"),
        ({"size": 12.5e9}, {"size": 125e6}, "12.5 GB → 125 MB, 100 times smaller"),
        ({"size_weights": 8e6}, {"size_weights": 1e6}, "weights 8.0 → 1.0 MB, 8.0 times smaller"),
        ({"latency_p50": 10.4}, {"latency_p50": 10.0}, "no faster"),
        ({"latency_p50": 10.0}, {"latency_p50": 10.4}, "no faster"),
        ({"latency_p50": 10.6}, {"latency_p50": 10.0}, "1.06 times faster"),
        ({"latency_p50": 10.0}, {"latency_p50": 13.0}, "1.3 times slower"),
        ({"throughput": 100.0}, {"throughput": 250.0}, "2.5 times faster"),
        ({"throughput": 100.0}, {"throughput": 50.0}, "2.0 times slower"),
        (
            {"latency_p50": 10.0, "throughput": 100.0},
            {"latency_p50": 5.0, "throughput": 50.0},
            "2.0 times faster for one query, 2.0 times slower in batches",
        ),
        (
            {"latency_p50": 10.0, "throughput": 100.0},
            {"latency_p50": 5.0, "throughput": 102.0},
            "2.0 times faster for one query, no faster in batches",
        ),
        ({"peak_memory": 1e6}, {"peak_memory": 1e6}, "nothing was measured"),
        ({"size": 10e6}, {}, "nothing was measured"),
        ({"latency_p50": 0.0}, {"latency_p50": 0.0}, "nothing was measured"),
    ],
)
def test_size_and_speed(before: dict[str, float], after: dict[str, float], said: str) -> None:
    """CASES Q26: slower is said in words, and a speed-up below 1.05 is none."""
    assert report.verdict(pair(before, after)) == f"M: {said}"


def test_smaller_means_fewer_bytes_whatever_a_measurement_says_of_its_direction() -> None:
    before, after = (Measurement(name="size", value=v, unit="B", higher_is_better=True) for v in (2e6, 1e6))
    assert report.verdict(pair({"s": before}, {"s": after})) == "M: 2.0 → 1.0 MB, 2.0 times smaller"


def test_clocks_of_two_machines_are_not_compared() -> None:
    f = full()
    other = msgspec.structs.replace(MACHINE, threads=8)
    elsewhere = having(f, original=msgspec.structs.replace(f.original, environment=other))
    assert "faster" not in report.verdict(elsewhere)
    assert "speed not compared" in report.verdict(elsewhere)
    assert {row.name: row.change.text for row in _format.rows(elsewhere)}["latency_p50"] == _format.DASH
    assert "Clocks are not compared" in report.render(elsewhere)


def test_quality_without_a_pair_has_no_interval() -> None:
    c = pair({"m": metric("map", 0.5)}, {"m": metric("map", 0.45)})
    assert report.verdict(c) == "M: MAP 0.500 → 0.450, no interval"


def test_a_metric_where_less_is_better_is_not_called_kept() -> None:
    worse = msgspec.structs.replace(metric("word_error_rate", 0.1), higher_is_better=False)
    c = pair({"m": worse}, {"m": worse}, changes=(change(0.02, (-0.001, 0.041), name="word_error_rate"),))
    assert report.verdict(c) == "M: WER +2.0 %, interval −0.1 to +4.1 %, n = 300"
    points = msgspec.structs.replace(change(-0.004, (-0.009, 0.001), name="word_error_rate"), points=True)
    c = pair({"m": worse}, {"m": worse}, changes=(points,))
    assert report.verdict(c) == "M: WER +0.4 points, interval −0.1 to +0.9 points, n = 300"
    assert _format.rows(c)[0].better is None
    surely = having(c, changes=(change(0.02, (0.001, 0.041), name="word_error_rate"),))
    assert _format.rows(surely)[0].better is False


def test_a_baseline_of_zero_has_no_relative_change() -> None:
    nan = float("nan")
    c = pair({}, {}, changes=(change(nan, (nan, nan)),))
    c = having(c, changes=(msgspec.structs.replace(c.changes[0], before=0.0, after=0.0),))
    assert report.verdict(c) == "M: nDCG@10 0.000 → 0.000, n = 300"
    page = report.render(c)
    assert "nan" not in page.lower().replace("dominant", "")
    assert set(charts_of(page)) == set()


@pytest.mark.parametrize(
    ("gates", "needed", "said"),
    [
        (
            [("quality", "undecided", -0.01)],
            1240,
            ["undecided: n = 300 is too few to rule out a loss of 1 %, it would take n = 1,240"],
        ),
        ([("quality", "undecided", 0.005)], None, ["undecided: n = 300 is too few to rule out a loss of 0.5 %"]),
        ([("ndcg@10", "undecided", None)], 900, ["n = 300 is too few to rule out such a loss, it would take n = 900"]),
        ([("parity", "undecided", None)], 900, ["undecided: parity"]),
        ([("invariance", "failed", 0.999)], None, ["gate failed: invariance"]),
        ([("quality", "failed", 0.01), ("finite", "failed", None)], None, ["gates failed: quality, finite"]),
        ([("quality", "passed", 0.01)], None, []),
    ],
)
def test_gates_that_did_not_pass_are_said(
    gates: list[tuple[str, str, float | None]], needed: int | None, said: list[str]
) -> None:
    results = tuple(GateResult(gate=g, status=s, detail="", limit=limit) for g, s, limit in gates)  # type: ignore[arg-type]
    words = report.verdict(having(full(), gates=results, changes=(change(n_needed=needed),)))
    assert [part for part in said if part not in words] == []
    assert said or words.endswith("n = 300")


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (_format.size(0), "0 B"),
        (_format.size(999), "999 B"),
        (_format.size(42_000), "42.0 kB"),
        (_format.size(820_000), "0.82 MB"),
        (_format.size(999_999), "1.0 MB"),
        (_format.size(9_640_000), "9.6 MB"),
        (_format.size(99_960_000), "100 MB"),
        (_format.size(-21_860_000), "−21.9 MB"),
        (_format.size(1.34e9), "1,340 MB"),
        (_format.size(5.4e10), "54.0 GB"),
        (_format.milliseconds(0.042), "42.0 µs"),
        (_format.milliseconds(4.649), "4.65 ms"),
        (_format.milliseconds(12_340), "12.3 s"),
        (_format.seconds(0.042), "42.0 ms"),
        (_format.seconds(184.2), "3.07 min"),
        (_format.seconds(9_000), "2.50 h"),
        (_format.count(950), "950"),
        (_format.count(22_565_376), "22.6 M"),
        (_format.count(1.42e9), "1.42 G"),
        (_format.percent(-0.0001, signed=True), "0.0 %"),
        (_format.percent(0.0123, signed=True), "+1.2 %"),
        (_format.percent(0.01, trim=True), "1 %"),
        (_format.significant(0.0000312), "3.1e−05"),
        (_format.significant(99.96), "100"),
        (_format.cosine(0.9999998), "0.99999"),
        (_format.cosine(1.0), "1.00000"),
        (_format.score(float("nan")), _format.DASH),
        (_format.size(float("inf")), _format.DASH),
        (_format.interval(4.5, 4.8, _format.milliseconds), "4.50 to 4.80 ms"),
        (_format.arrow("1.3 MB", "42.0 kB"), "1.3 MB → 42.0 kB"),
        (_format.metric_label("no_such_metric@7"), "No such metric@7"),
    ],
)
def test_figures(shown: str, expected: str) -> None:
    assert shown == expected


def test_the_table_has_at_most_ten_rows_and_the_metric_first() -> None:
    rows = _format.rows(full())
    assert [row.name for row in rows] == [
        "ndcg@10",
        "size",
        "size_weights",
        "parameters",
        "latency_p50",
        "latency_p95",
        "throughput",
        "cold_start",
        "peak_memory",
        "invariance",
    ]
    by_name = {row.name: row for row in rows}
    assert by_name["ndcg@10"].change == _format.Cell(text="99.1 % kept", detail="98.2 to 100.1 %")
    assert by_name["ndcg@10"].better is None  # the interval holds no change
    assert by_name["size"].change.text == "9.4× smaller"
    assert by_name["latency_p95"].before.detail == "13.1 to 13.9 ms"
    assert [cell.text for cell in by_name["size"].others] == ["23.1 MB", "45.7 MB", "30.6 MB"]
    assert [cell.text for cell in by_name["cold_start"].others] == [_format.DASH] * 3


# ---------------------------------------------------------------- the page


def charts_of(page: str) -> dict[str, str]:
    """Name of each chart to its SVG."""
    return dict(re.findall(r'<figure id="figure-([^"]+)">.*?(<svg .*?</svg>)', page, flags=re.DOTALL))


ALL_CHARTS = {"quality-size", "quality-latency", "steps", "parts", "queries", "metrics"}


@pytest.fixture(scope="module")
def page() -> str:
    return report.render(full())


@pytest.fixture(scope="module", params=["full", "minimal", "nothing"])
def any_page(request: pytest.FixtureRequest, page: str) -> str:
    if request.param == "full":
        return page
    return report.render(minimal() if request.param == "minimal" else pair({}, {}))


def test_the_page_is_balanced_and_its_ids_are_unique(any_page: str) -> None:
    tags = Page(any_page).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [name for _, attributes in tags for name in (attributes.get("aria-labelledby") or "").split()]
    assert set(named) <= set(ids)


def test_the_page_runs_nothing_and_loads_nothing(any_page: str) -> None:
    tags = Page(any_page).tags
    assert "<script" not in any_page.lower()
    assert {tag for tag, _ in tags} & {"script", "link", "iframe", "object", "embed", "img", "base", "form"} == set()
    names = {name for _, attributes in tags for name in attributes}
    assert not {name for name in names if name.startswith("on")}
    assert not names & {"src", "href", "xlink:href", "srcset", "action"}
    assert "@import" not in any_page
    assert set(re.findall(r"url\(([^)]*)\)", any_page)) <= {"#hatch"}
    policy = next(a["content"] for t, a in tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_the_sentence_stands_at_the_top(page: str) -> None:
    assert Page(page).text("h1").replace("\xa0", " ") == report.verdict(full())


def test_text_of_the_collection_is_escaped(page: str) -> None:
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page
    assert "Nanoparticles &amp; &lt;b&gt;stem cells&lt;/b&gt;" in page


def test_names_from_outside_are_escaped_in_charts_too() -> None:
    nasty = "</svg><script>x</script> \x0b\ud800 #0a0a01 NaN"
    f = full()
    page = report.render(
        having(
            f,
            collection=nasty,
            original=msgspec.structs.replace(f.original, subject=nasty),
            alternatives=(msgspec.structs.replace(f.alternatives[0], subject=nasty),),
            records=(msgspec.structs.replace(f.records[0], step=nasty, parameters={nasty: nasty}, notes=(nasty,)),),
            bytes_before={nasty: 10},
            bytes_after={nasty: 5},
            command=nasty,
            notes=(nasty,),
        )
    )
    assert "<script" not in page
    assert set(charts_of(page)) == ALL_CHARTS
    Page(page)


def test_results_are_marked_in_words(page: str) -> None:
    assert page.count("✓&nbsp;relevant") == 3
    assert "(was 1)" in page
    assert page.count('<span class="move">(new)</span>') == 2
    for gate in full().gates:
        assert f">{gate.status}</span><b>{gate.gate}</b>" in page


def test_everything_of_a_step_is_told(page: str) -> None:
    for said in (
        "quantize.weights_int",
        "0.136",
        "mean 0.00213",
        "max 0.0412",
        "SQNR 21.4 dB",
        "−1.6 to +0.2 %",
        "3.07 min",
    ):
        assert said in page
    for formula in ("compressed bytes / original bytes", "quantized − original", "(after − before) / before"):
        assert formula in page


def test_machine_command_and_notes_are_there(page: str) -> None:
    """CASES Q6: the instruction sets that exact sums need are named."""
    f = full()
    assert f.command in page
    assert f.notes[0] in page
    assert MACHINE.cpu in page
    assert "avx512_vnni" in page
    assert "onnxruntime 1.32.0" in page


# ---------------------------------------------------------------- charts


def test_every_chart_is_drawn_when_there_are_data(page: str) -> None:
    charts = charts_of(page)
    assert set(charts) == ALL_CHARTS
    for name, svg in charts.items():
        assert "NaN" not in svg
        assert "undefined" not in svg
        assert f'<title id="{name}-title">' in svg
        assert f'<desc id="{name}-desc">' in svg
        assert 'role="img"' in svg
        assert re.search(r'viewBox="0 0 400 \d+"', svg)


@pytest.mark.parametrize(
    ("missing", "chart"),
    [
        ({"records": ()}, "steps"),
        ({"bytes_before": {}}, "parts"),
        ({"bytes_after": {}}, "parts"),
        ({"changes": ()}, "metrics"),
    ],
)
def test_a_chart_without_data_is_left_out(missing: dict[str, object], chart: str) -> None:
    page = report.render(having(full(), **missing))
    assert set(charts_of(page)) == ALL_CHARTS - {chart}


def test_charts_of_queries_and_points_need_their_measurements() -> None:
    f = full()
    bare = subject("MiniLM", ndcg=metric("ndcg@10", 0.64))
    charts = charts_of(report.render(having(f, original=bare, compressed=bare, alternatives=f.alternatives[:1])))
    assert set(charts) == {"steps", "parts", "metrics"}
    assert charts_of(report.render(minimal())) == {}


def test_the_charts_describe_what_they_show(page: str) -> None:
    described = {name: re.search("<desc[^>]*>(.*?)</desc>", svg)[1] for name, svg in charts_of(page).items()}  # type: ignore[index]
    differences = np.array(after_queries()) - np.array(before_queries())
    worse, better = int((differences < -1e-9).sum()), int((differences > 1e-9).sum())
    assert (
        f"Of 300 queries {worse} are worse, {better} better and {300 - worse - better} the same" in described["queries"]
    )
    assert "MiniLM (original): 90.9 MB, nDCG@10 0.645 (0.604 to 0.686)" in described["quality-size"]
    assert "float16 (alternative): 14.8 ms" in described["quality-latency"]
    assert "simplify.vocabulary −21.9 MB, quality 100.0 % kept" in described["steps"]
    assert "token table 46.9 → 3.6 MB" in described["parts"]
    assert "ecall@100 99.6 % kept, interval 98.9 to 100.2" in described["metrics"]


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_tiny_and_huge_figures_are_drawn(factor: float) -> None:
    many = tuple(
        subject(
            f"alternative {i}",
            ndcg=metric("ndcg@10", 0.5 + i / 100),
            size=1e6 * factor * 3**i,
            latency_p50=factor * 2**i,
        )
        for i in range(24)
    )
    charts = charts_of(report.render(having(full(), alternatives=many)))
    for name in ("quality-size", "quality-latency"):
        places = [float(x) for x in re.findall(r"translate\((-?[\d.e-]+),", charts[name])]
        assert all(-60 <= x <= 460 for x in places)


def test_a_step_that_adds_bytes_and_one_that_changes_none_are_drawn() -> None:
    steps = (step("prune.weights", 1_000_000, 1_200_000), step("distil.embedding", 1_200_000, 1_200_000))
    described = charts_of(report.render(having(full(), records=steps)))["steps"]
    assert "prune.weights +0.20 MB; distil.embedding no bytes saved" in described


# ---------------------------------------------------------------- themes


def themes(page: str) -> dict[str, dict[str, str]]:
    blocks = re.findall(r":root \{(.*?)\}", page, flags=re.DOTALL)
    light, dark = (dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6});", block)) for block in blocks)
    return {"light": light, "dark": dark}


def test_both_themes_have_every_colour_that_is_used(page: str) -> None:
    fonts = {"serif", "sans", "mono"}
    used = set(re.findall(r"var\(--([a-z]+)\)", page)) - fonts
    assert len(used) >= 8
    for colours in themes(page).values():
        assert used <= set(colours)
    body = re.sub(r":root \{.*?\}", "", page, flags=re.DOTALL)
    assert not re.findall(r"""(?:fill|stroke|color|background)[:=]\s*["']?#[0-9a-f]{3,8}\b""", body)


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_text_and_marks_stand_out_in_both_themes(page: str) -> None:
    assert luminance("#ffffff") == pytest.approx(1.0)
    for colours in themes(page).values():
        paper = luminance(colours["paper"])
        for name in set(colours) - {"paper", "panel", "line"}:
            light, dark = sorted((paper, luminance(colours[name])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, name


# ---------------------------------------------------------------- files and extras


def test_the_page_is_written_whole(tmp_path: Path, page: str) -> None:
    path = tmp_path / "new" / "report.html"
    report.write(full(), path)
    assert path.read_text(encoding="utf-8") == page
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_the_same_run_gives_the_same_page(page: str) -> None:
    again = msgspec.json.decode(msgspec.json.encode(full()), type=Comparison)
    assert report.render(again) == page


@pytest.mark.parametrize("library", ["altair", "vl_convert", "jinja2"])
def test_without_the_extra_only_the_page_is_refused(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    for name in ("_charts", "_drawing", "_scatter"):
        monkeypatch.delitem(sys.modules, f"slimseek.report.{name}", raising=False)
    assert report.verdict(full()).startswith("MiniLM: ")
    with pytest.raises(MissingExtra, match=rf"{library} is not installed; run: pip install 'slimseek\[report\]'"):
        report.render(full())


def test_importing_the_report_loads_nothing_heavy() -> None:
    code = "import sys, slimseek.report; sys.exit(any(m in sys.modules for m in ('altair', 'vl_convert', 'jinja2')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
