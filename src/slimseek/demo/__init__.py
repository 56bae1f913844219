"""The whole flow on models and collections that packages carry: compress, rebuild, deploy; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from slimseek.demo import pictures, recordings
from slimseek.errors import UsageError
from slimseek.measurement import Comparison
from slimseek.pipeline import compress, deploy_on
from slimseek.progress import say
from slimseek.prove import Options
from slimseek.rebuild import rebuild
from slimseek.schema import Gates, Recipe, RecipeStep

Subject = Literal["text", "image", "speech"]
RECIPE = "int8"
PICTURE_RECIPE = Recipe(
    name="int8 for pictures",
    steps=(
        RecipeStep(method="quantize.weights_int", parameters={"bits": 8, "granularity": "channel"}),
        RecipeStep(method="quantize.activations_int", parameters={"mode": "static", "estimator": "percentile"}),
    ),
    gates=Gates(metric="map_r", max_loss=0.05),
)
"""Its gate is wider than that of texts, since so few pictures prove no smaller loss."""
ARTIFACT, REBUILT, SERVED = "artifact", "rebuilt", "served"
PICTURES, RECORDINGS = "pictures", "recordings"


def demo(out: str | Path, subject: Subject = "text", *, threads: int = 0, lang: str = "en") -> Comparison:
    """The whole flow on a built-in model and collection; everything lies in ``out``.

    Args:
        out: the folder; what an earlier run left there is replaced.
        subject: ``text``: MiniLM on news articles; ``image``: EfficientNet-Lite0 on pictures that packages carry;
            ``speech``: Whisper tiny.en on captions that are read aloud.
        threads: of the runtimes; 0 for all cores.
        lang: language of the HTML report, ``en`` or ``zh``.

    Raises:
        UsageError: there is no such demonstration, nor such a language, or a package that it needs is missing; the text
            names it.
        MissingExtra: a library is missing.
    """
    if subject not in DEMOS:
        raise UsageError(f"there is no demonstration {subject!r}; there are {', '.join(get_args(Subject))}")
    named = ("" if subject == "text" else f" {subject}", "" if lang == "en" else f" --lang {lang}")
    command = f"slimseek demo{named[0]} --out {out}{named[1]}"
    options = Options(threads=threads, alternatives=subject == "text", force=True, command=command, lang=lang)
    return DEMOS[subject](Path(out), options)


def _text(out: Path, options: Options) -> Comparison:
    return _run("minilm", "news", out, options)


def _image(out: Path, options: Options) -> Comparison:
    found = pictures.collect(out / PICTURES)
    say(f"{found.documents} pictures to find and {found.queries} to search by, from {found.source}: {out / PICTURES}")
    return _run("efficientnet-lite0", str(out / PICTURES), out, options, PICTURE_RECIPE, "onnxruntime")


def _speech(out: Path, options: Options) -> Comparison:
    found = recordings.collect(out / RECORDINGS)
    say(f"{found.dev} recordings to choose by and {found.test} to report on, from {found.source}: {out / RECORDINGS}")
    return _run("whisper-tiny.en", str(out / RECORDINGS), out, options, "int8-dynamic", "onnxruntime")


def _run(
    source: str, collection: str, out: Path, options: Options, recipe: str | Recipe = RECIPE, target: str = "auto"
) -> Comparison:
    comparison = compress(source, collection, recipe, out / ARTIFACT, options)
    say("rebuild as an ordinary model: " + rebuild(out / ARTIFACT, out / REBUILT, force=True).detail)
    deploy_on(out / ARTIFACT, target, out / SERVED, threads=options.threads, force=True)
    return comparison


DEMOS: dict[str, Callable[[Path, Options], Comparison]] = {"text": _text, "image": _image, "speech": _speech}
