r"""Whisper in few bytes: what a recogniser keeps of its words, and of the search that it serves.

    python benchmarks/_speech.py --out build/speech
    python benchmarks/voice_search.py --data build/speech --limit 200
    python benchmarks/voice_search.py --data build/speech --time

Whisper tiny.en on English, Whisper base on Spanish and French, each by its recipe (benchmarks/recipes/whisper-*.yaml),
as plain int8 and fp16, and by ONNX Runtime's quantize_dynamic of the same graphs. Quality is measured on the packages:
word error rate on the test recordings, and whether the search of texts by what was heard finds what was said (minilm
over all texts of the collection), paired against float32 in ONNX Runtime. --limit takes so many test recordings of a
language, chosen by their names; 0 takes all, and --dev those of dev too. Steps calibrate and train on dev recordings.
--time measures the real-time factor and the latency, in turns, of packages made before. Everything finished is kept in
--work, so a killed run goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from slimseek import artifact, choose, compress, data, deploy, evaluate, plugins, recipe, spoken, timing
from slimseek.collection import Collection, SearchSet
from slimseek.folder import write_atomically, writing
from slimseek.inputs.sound import SoundInput
from slimseek.measurement import Change
from slimseek.progress import say, shown_on
from slimseek.recognise import Recogniser, transcriber
from slimseek.schema import Model, Samples

PAIRS = {"whisper-tiny.en": ("en",), "whisper-base": ("es", "fr")}
RECIPES = {"int8-dynamic": ("onnxruntime",), "fp16": ("onnxruntime",)}
OURS = {
    "whisper-tiny.en": {"ours": "whisper-tiny"},
    "whisper-base": {"ours": "whisper-base"},
}
BASELINE = "fp32 onnxruntime"
THEIRS = "dynamic int8 onnxruntime (theirs)"
METRICS = ("word_error_rate", "character_error_rate", "hit@1", "ndcg@10")
CALIBRATION = 48
PROBED = 6
Subjects = dict[str, Callable[[], Recogniser]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("build/speech"))
    parser.add_argument("--models", nargs="+", default=list(PAIRS))
    parser.add_argument("--subjects", nargs="+", default=(), help="words of the subjects to measure, such as ours")
    parser.add_argument("--limit", type=int, default=0, help="test recordings of a language; 0 for all")
    parser.add_argument("--dev", action="store_true", help="dev recordings too: all speech at hand together")
    parser.add_argument("--work", type=Path, default=Path("build/voice_search"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/voice_search.json"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--time", action="store_true", help="times too")
    arguments = parser.parse_args()
    with shown_on(Console(stderr=True)):
        results: dict[str, Any] = {"environment": msgspec.to_builtins(timing.environment(arguments.threads))}
        for name in arguments.models:
            collections = {one: data.load(str(arguments.data / one)) for one in PAIRS[name]}
            for language, collection in collections.items():
                place = arguments.work / name / language
                found = subjects(name, collections, language, place, arguments.threads)
                chosen = {
                    subject: opened for subject, opened in found.items()
                    if subject == BASELINE or not arguments.subjects
                    or any(word in subject for word in arguments.subjects)
                }  # fmt: skip
                test = tested(collection, arguments.limit, arguments.dev)
                heard = {subject: transcripts(subject, opened, test, place) for subject, opened in chosen.items()}
                rows = table(test, heard)
                if arguments.time:
                    for subject, measured in clock(chosen, test).items():
                        rows[subject] |= measured
                results[f"{name} {language}"] = rows
        write_atomically(arguments.out, msgspec.json.format(json.dumps(results).encode(), indent=1))
        print_markdown(results)


# ---------------------------------------------------------------- models


def subjects(name: str, collections: Mapping[str, Collection], language: str, place: Path, threads: int) -> Subjects:
    """Name to a function that opens it; a recipe runs once for all languages, packages are written once for each."""
    original = choose.model(name)
    samples = learned_from(collections)
    found: Subjects = {}

    def package(subject: str, model: Callable[[], Model], target: str) -> None:
        folder = place / subject.replace(" ", "-")

        def opened() -> Recogniser:
            if not (folder / choose.PACKAGE).is_file():
                with writing(folder) as written:
                    deploy.write(
                        speaking(model(), language),
                        target,
                        written,
                        texts=samples.calibration[:PROBED],
                        threads=threads,
                    )
            return choose.recogniser(folder, threads)

        found[subject] = opened

    package(BASELINE, lambda: original, "onnxruntime")
    recipes = {shorthand: (f"benchmarks/recipes/{file}.yaml", ("onnxruntime", "openvino"))
               for shorthand, file in OURS[name].items()}  # fmt: skip
    recipes |= {shorthand: (shorthand, targets) for shorthand, targets in RECIPES.items()}
    for shorthand, (file, targets) in recipes.items():
        for target in targets:
            made = place.parent / f"{shorthand}.artifact"
            package(f"{shorthand} {target}", lambda file=file, made=made: small(original, file, samples, made), target)  # type: ignore[misc]
    found[THEIRS] = lambda: theirs(speaking(original, language), place / "theirs", threads)
    return found


def learned_from(collections: Mapping[str, Collection]) -> Samples:
    """Dev recordings to train on, and of each language as many of them to calibrate by."""
    items: list[str] = []
    texts: list[str] = []
    for collection in collections.values():
        hidden = dataclasses.replace(data.split(collection), test=collection.qrels["test"])
        found = spoken.samples(collection, hidden, CALIBRATION // len(collections))
        items, texts = [*items, *found.calibration], [*texts, *found.texts]
    return Samples(calibration=items, texts=texts)


def small(original: Model, file: str, samples: Samples, folder: Path) -> Model:
    """What a recipe makes of the model, kept as an artifact."""
    if not artifact.is_artifact(folder):
        steps = recipe.load(file)
        made = compress.run(original, steps, samples).model
        with writing(folder) as written:
            artifact.write(made, written, recipe=steps)
    return artifact.read(folder)[1]


def speaking(model: Model, language: str) -> Model:
    """The model asked for this language, where it knows several."""
    decoding = model.spec.decoding
    if not decoding or not decoding.languages:
        return model
    spec = msgspec.structs.replace(model.spec, decoding=msgspec.structs.replace(decoding, language=language))
    return dataclasses.replace(model, spec=spec)


def theirs(model: Model, folder: Path, threads: int) -> Recogniser:
    """Both graphs through ONNX Runtime's own ``quantize_dynamic``."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    open_function = plugins.require("slimseek.backends._session").open_function
    write = plugins.require("slimseek.backends._fusion").write
    folder.mkdir(parents=True, exist_ok=True)
    logging.getLogger().setLevel(logging.ERROR)  # it advises a pre-processing that these graphs do not need
    functions, size = {}, 0
    for name, graph in choose.family(model).functions(model).items():
        plain, file = folder / f"{name}-plain.onnx", folder / f"{name}.onnx"
        if not file.is_file():
            write(graph, plain)
            quantize_dynamic(plain, file, weight_type=QuantType.QInt8)
        functions[name] = open_function(file, threads)
        size += file.stat().st_size
    rest = sum(map(len, model.files.values()))
    return Recogniser(
        name=THEIRS, spec=model.spec, input=SoundInput(model.spec), model=None, runtime="onnxruntime", threads=threads,
        transcribe=transcriber(functions, model.spec, model.files), shipped={"weights": size, "rest": rest},
    )  # fmt: skip


# ---------------------------------------------------------------- quality


def tested(collection: Collection, limit: int, dev: bool) -> SearchSet:
    """The test recordings, or so many of them in an order that hangs on nothing but their names."""
    qrels = collection.qrels["test"] | (collection.qrels["dev"] if dev else {})
    chosen = sorted(qrels, key=lambda query: zlib.crc32(query.encode()))[: limit or None]
    return spoken.asked(data.search_set(collection, {query: qrels[query] for query in chosen}, "test"))


def transcripts(subject: str, opened: Callable[[], Recogniser], test: SearchSet, place: Path) -> dict[str, Any]:
    """What it hears and its bytes; what is there is not transcribed again."""
    place.mkdir(parents=True, exist_ok=True)
    file = place / f"heard-{subject.replace(' ', '-')}.json"
    held = json.loads(file.read_bytes()) if file.is_file() else {"texts": {}, "shipped": {}}
    missing = [query for query in test.queries if query not in held["texts"]]
    if missing:
        recogniser = opened()
        say(f"{test.name}: {subject}, {len(missing)} recordings")
        texts = recogniser.transcripts([test.queries[query] for query in missing])
        held = {"texts": held["texts"] | dict(zip(missing, texts, strict=True)), "shipped": recogniser.shipped}
        write_atomically(file, json.dumps(held).encode())
    return held | {"texts": {query: held["texts"][query] for query in test.queries}}


def table(test: SearchSet, heard: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """One row a subject: bytes, error rates and the search, paired against the baseline."""
    found = spoken.search(test)
    scores = {name: spoken.scored(one["texts"], test, METRICS, found) for name, one in heard.items()}
    assert found is not None
    typed = spoken.typed(test, METRICS, found)
    words = sum(len(test.said[item].split()) for item in test.queries.values())
    rows: dict[str, dict[str, Any]] = {
        "typed": {"n": len(test.queries), "words": words}
        | {one.name: {"after": one.value} for one in typed.measurements}
    }
    for name, one in scores.items():
        changes = [evaluate.compare(scores[BASELINE].get(metric), one.get(metric)) for metric in METRICS]
        rows[name] = {
            "size_bytes": sum(heard[name]["shipped"].values()),
            "weights_bytes": heard[name]["shipped"]["weights"],
            "n": len(test.queries),
            "words": words,
            **{change.metric: changed(change) for change in changes},
        }
    return rows


def changed(change: Change) -> dict[str, Any]:
    """A change as it stands in the results."""
    return {"before": change.before, "after": change.after, "change": change.relative, "interval": change.interval}


def clock(chosen: Subjects, test: SearchSet) -> dict[str, dict[str, float]]:
    """Real-time factor and latency of a recording, in turns."""
    opened = {name: (one(), "") for name, one in chosen.items()}
    measured = spoken.cost(opened, list(test.queries.values()))
    return {name: {one.name: one.value for one in row} for name, row in measured.items()}


def print_markdown(results: Mapping[str, Any]) -> None:
    """The tables as they stand in docs/voice_search.md."""
    for name, rows in results.items():
        if name == "environment":
            continue
        typed = rows["typed"]
        print(f"\n{name}: {typed['n']} recordings, {typed['words']} words; typed hit@1 {typed['hit@1']['after']:.3f}\n")
        print("| | MB shipped | word error rate | points (95 %) | hit@1 | kept (95 %) | nDCG@10 | real-time factor |")
        print("|---|---|---|---|---|---|---|---|")
        for subject, row in rows.items():
            if subject == "typed":
                continue
            rate, hit = row["word_error_rate"], row["hit@1"]
            low, high = sorted(-100 * bound for bound in rate["interval"])  # a change for the better is above zero
            kept = [1 + bound for bound in hit["interval"]]
            speed = f"{row['real_time_factor']:.3f}" if "real_time_factor" in row else ""
            cells = (
                f"{row['size_bytes'] / 1e6:.1f}",
                f"{rate['after']:.1%}",
                f"{0 - 100 * rate['change']:+.2f} ({low:+.2f} to {high:+.2f})",
                f"{hit['after']:.3f}",
                f"{1 + hit['change']:.1%} ({kept[0]:.1%} to {kept[1]:.1%})",
                f"{row['ndcg@10']['after']:.3f}",
                speed,
            )
            print(f"| {subject} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
