"""Stage 1: a name or a path to a model that can be compressed, or to an encoder that can be measured and used."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from slimseek import artifact, integers, plugins, setup
from slimseek import folder as folders
from slimseek.artifact import KeptIndex
from slimseek.bases import Backend, Family
from slimseek.encoder import Encoder
from slimseek.errors import ArtifactError, SlimseekError, UsageError, first_line, of_the_system
from slimseek.folder import FileEntry
from slimseek.inputs.kept import KEPT
from slimseek.inputs.reader import reader
from slimseek.inputs.sound import SoundInput
from slimseek.measurement import Comparison, GateResult
from slimseek.models._array import networks
from slimseek.models._text import built_in as encoders
from slimseek.models._whisper import built_in as whispers
from slimseek.recognise import Recogniser, scorer, transcriber
from slimseek.schema import Encode, Function, Model, ModelSpec
from slimseek.timing import default_threads
from slimseek.trial import Found
from slimseek.value import Value

PADDLE = ".pdmodel"
PACKAGE = "package.json"
SEARCHED = "artifact"
"""Where a search under a budget has its artifact, in its folder, which can be named in its place."""
PACKAGE_VERSION = 1
SEARCH = "search.json"
"""What a search under a budget writes into its folder."""
REFERENCE_LENGTH = 128
FUNCTIONS = ("encoder", "decoder")
WEIGHTS = ("model.", *(f"{name}." for name in FUNCTIONS))
"""What the names of a package's files of weights begin with."""


class Package(Value, frozen=True):
    """The manifest of a deployed package.

    Attributes:
        target: the backend that opens it.
        spec: what it takes and gives.
        parameters: number of weights.
        macs: multiply-accumulates for one text of 128 tokens.
        parity: how its vectors compare with the artifact's.
        gates: what was checked after deployment.
        tested_with: versions of the runtime that it was checked on.
        collection: path of the collection that the model was judged by.
        files: every other file with its hash.
        index_of: the original whose index it searches; unset for one that encodes documents too.
        not_run: why it did not run on the machine that wrote it, so that a stand-in was checked; unset for one that
            ran.
    """

    format_version: int
    target: str
    spec: ModelSpec
    parameters: int
    macs: int
    parity: dict[str, float]
    gates: tuple[GateResult, ...]
    tested_with: dict[str, str]
    collection: str
    files: tuple[FileEntry, ...]
    index_of: KeptIndex | msgspec.UnsetType = msgspec.UNSET
    not_run: str | msgspec.UnsetType = msgspec.UNSET


def choose(source: str | Path, threads: int | None = None) -> Encoder:
    """Open anything that encodes: a built-in name, ``timm:NAME``, ``package.module:function`` that makes an image
    network, a model folder, an ``.onnx`` file, an artifact, a package.

    Args:
        source: the MODEL of the command line.
        threads: threads of the runtime; ``None`` for all cores that this process may use.

    Raises:
        UsageError: nothing there is a model, or it is a package that does not run here; the text says what is missing.
    """
    count = threads or default_threads()
    path = _path(source)
    if (path / PACKAGE).is_file():
        return _package(path, count)
    return dataclasses.replace(encoder(model(source), name_of(source), count), index_of=_index_of(path))


def recogniser(source: str | Path, threads: int | None = None) -> Recogniser:
    """Open anything that transcribes: a built-in name, a model folder, an artifact, a package.

    Args:
        source: the MODEL of the command line.
        threads: threads of the runtime; ``None`` for all cores that this process may use.

    Raises:
        UsageError: nothing there is a recogniser, or it is a package that does not run here.
    """
    count, path = threads or default_threads(), _path(source)
    if not (path / PACKAGE).is_file():
        return recognising(model(source), name_of(source), count)
    package = read_package(path)
    _check_transcribes(package.spec, source)
    backend = _running(path, package)
    if package.spec.autoregressive:
        functions = {name: backend.function(path, name, count) for name in FUNCTIONS}
    else:
        encode = backend.open(path, count)
        functions = {"model": lambda batch: {"scores": encode(batch)}}
    shipped, files = _shipped(path, package)
    return assemble_recogniser(path.resolve().name, package.spec, files, functions, shipped, package.target, count)


def recognising(chosen: Model, name: str, threads: int) -> Recogniser:
    """The reference implementation of a model as a recogniser."""
    _check_transcribes(chosen.spec, name)
    functions = family(chosen).computed(chosen, threads)
    found = assemble_recogniser(
        name, chosen.spec, chosen.files, functions, _stored(chosen), chosen.spec.family, threads
    )
    return dataclasses.replace(found, model=chosen)


def stand_in(source: str | Path, threads: int | None = None) -> Encoder:
    """What computes the same as a package that does not run here, to check that package; never to search with.

    Args:
        source: a package.
        threads: threads of the runtime; ``None`` for all cores that this process may use.
    """
    path, count = _path(source), threads or default_threads()
    package = read_package(path)
    return _assembled(path, package, plugins.load("backends", package.target)().stand_in(path, count), count)


def model(source: str | Path) -> Model:
    """Open a model as data that methods can change.

    Raises:
        UsageError: nothing there is a model, or it is a deployed package, which cannot be changed any more.
    """
    path = _path(source)
    if (path / PACKAGE).is_file():
        raise UsageError(
            f"{path} is a deployed package, which cannot be changed; give the artifact or the model it came from"
        )
    if artifact.is_artifact(path):
        return artifact.read(path)[1]
    if path.suffix == PADDLE:
        with tempfile.TemporaryDirectory() as temporary:
            converted = Path(temporary) / f"{path.stem}.onnx"
            setup.paddle_to_onnx(path, converted)
            return model(converted)
    for name in plugins.names("models"):
        found: Family = plugins.load("models", name)()
        if found.recognises(path):
            with _no_model(path):
                return found.open(path)
    raise UsageError(
        f"{path} is not a model: it has no modules.json or config.json (sentence-transformers, transformers), no .onnx "
        f"file, no manifest.json (artifact) and no package.json (deployed package)"
    )


@contextmanager
def _no_model(path: Path | str) -> Iterator[None]:
    """Whatever a damaged file provokes in the libraries that read it is an error of the file, and one line."""
    try:
        yield
    except SlimseekError:
        raise
    except Exception as error:
        if of_the_system(error) is not None:
            raise
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UsageError(
            f"{path} cannot be opened as a model; a file of it is damaged or unknown ({reason})"
        ) from error


def family(chosen: Model) -> Family:
    """The plug-in that runs this model."""
    found: Family = plugins.load("models", chosen.spec.family)()
    return found


def encoder(chosen: Model, name: str, threads: int) -> Encoder:
    """The reference implementation of a model as an encoder."""
    _check_encodes(chosen.spec, name)
    with _no_model(name):
        run = family(chosen).run(chosen, threads)
        return assemble(name, chosen.spec, chosen.files, run, shipped=_stored(chosen),
                        runtime=chosen.spec.family, threads=threads, model=chosen)  # fmt: skip


def assemble(
    name: str,
    spec: ModelSpec,
    files: Mapping[str, bytes],
    encode: Encode,
    *,
    shipped: dict[str, int],
    runtime: str,
    threads: int,
    model: Model | None = None,
    index_of: KeptIndex | None = None,
) -> Encoder:
    """An encoder from its parts; the tokenizer comes from ``files``."""
    return Encoder(name=name, spec=spec, input=reader(spec, files), encode=encode, model=model, shipped=shipped,
                   runtime=runtime, threads=threads, index_of=index_of)  # fmt: skip


def built_in_names() -> tuple[str, ...]:
    """Names of the models that Python packages carry."""
    return (*encoders.BUILT_IN, *networks.BUILT_IN, *whispers.BUILT_IN)


def name_of(source: str | Path) -> str:
    """A short name for reports: a built-in name as it is, a network by what is named last, a path by its last part."""
    if networks.is_network(str(source)):
        return networks.name_of(str(source))
    return str(source) if str(source) in built_in_names() else Path(source).resolve().name


def read_package(path: Path) -> Package:
    """The manifest of a deployed package, hashes checked.

    Raises:
        ArtifactError: it is truncated, changed, or from a newer version.
    """
    package = folders.read_manifest(path / PACKAGE, Package, PACKAGE_VERSION)
    folders.check(path, package.files)
    return package


def collection_of(source: str | Path) -> str:
    """The collection that an artifact or package was judged by, ``""`` if none is recorded."""
    path = _path(source)
    if (path / PACKAGE).is_file():
        return read_package(path).collection
    if artifact.is_artifact(path):
        return folders.read_manifest(path / artifact.MANIFEST, artifact.Artifact, artifact.FORMAT_VERSION).collection
    return ""


def index_of(source: str | Path) -> KeptIndex | None:
    """The original whose index an artifact or package searches; ``None`` for one that encodes documents too."""
    return _index_of(_path(source))


def size_of(source: str | Path) -> tuple[int, int]:
    """Parameters, and multiply-accumulates for a text of 128 tokens."""
    path = _path(source)
    if (path / PACKAGE).is_file():
        package = read_package(path)
        return package.parameters, package.macs
    opened = model(source)
    return opened.parameters, family(opened).macs(opened, REFERENCE_LENGTH)


def spec_of(source: str | Path) -> ModelSpec:
    """What a model takes and gives; of an artifact or a package its manifest tells it."""
    path = _path(source)
    if (path / PACKAGE).is_file():
        return folders.read_manifest(path / PACKAGE, Package, PACKAGE_VERSION).spec
    if artifact.is_artifact(path):
        return folders.read_manifest(path / artifact.MANIFEST, artifact.Artifact, artifact.FORMAT_VERSION).spec
    return model(source).spec


def search_of(source: str | Path) -> Found | None:
    """What a search under a budget left in a folder; ``None`` where there is none.

    Raises:
        ArtifactError: its file cannot be read.
    """
    file = _path(source) / SEARCH
    return folders.read_json(file, Found) if file.is_file() else None


def report_of(source: str | Path) -> Comparison:
    """The comparison that an artifact carries.

    Raises:
        ArtifactError: it is not an artifact, or was written without a report.
    """
    path = _path(source)
    if not artifact.is_artifact(path) or not (path / artifact.REPORT).is_file():
        raise ArtifactError(f"{path} is not an artifact with a report; slimseek compress writes one")
    return folders.read_json(path / artifact.REPORT, Comparison)


def _index_of(path: Path) -> KeptIndex | None:
    if (path / PACKAGE).is_file():
        return read_package(path).index_of or None
    if artifact.is_artifact(path):
        manifest = folders.read_manifest(path / artifact.MANIFEST, artifact.Artifact, artifact.FORMAT_VERSION)
        return manifest.index_of or None
    return None


def _package(path: Path, threads: int) -> Encoder:
    package = read_package(path)
    _check_encodes(package.spec, path)
    backend = _running(path, package)
    with _no_model(path):
        return _assembled(path, package, backend.open(path, threads), threads)


def _running(path: Path, package: Package) -> Backend:
    """The backend of a package that runs here."""
    backend: Backend = plugins.load("backends", package.target)()
    reason = backend.runs()
    if reason is not None:
        raise UsageError(f"{path} is a package for {package.target}, which does not run here: {reason}")
    return backend


def _check_encodes(spec: ModelSpec, source: str | Path) -> None:
    if spec.output == "transcript":
        raise UsageError(f"{source} is a recogniser, which gives transcripts and no vectors; "
                         "slimseek.choose.recogniser opens it")  # fmt: skip


def _check_transcribes(spec: ModelSpec, source: str | Path) -> None:
    if spec.output != "transcript":
        raise UsageError(f"{source} gives vectors or classes and no transcripts; slimseek.choose.choose opens it")


def _assembled(path: Path, package: Package, encode: Encode, threads: int) -> Encoder:
    """An opened package with its tokenizer and its bytes."""
    shipped, files = _shipped(path, package)
    return assemble(path.resolve().name, package.spec, files, encode,
                    shipped=shipped, runtime=package.target, threads=threads,
                    index_of=package.index_of or None)  # fmt: skip


def sizes(package: Package) -> dict[str, int]:
    """Bytes of the files of a package by name, without those for other machines than this one."""
    elsewhere = plugins.load("backends", package.target).elsewhere
    return {entry.path: entry.bytes for entry in package.files if entry.path not in elsewhere}


def _shipped(path: Path, package: Package) -> tuple[dict[str, int], dict[str, bytes]]:
    """Bytes of a package by kind, and its small files."""
    found = sizes(package)
    weights = sum(size for name, size in found.items() if name.startswith(WEIGHTS))
    rest = sum(found.values()) - weights + (path / PACKAGE).stat().st_size
    files = {name: (path / name).read_bytes() for name in KEPT & found.keys()}
    return {"weights": weights, "rest": rest}, files


def _stored(chosen: Model) -> dict[str, int]:
    """Bytes of a model by kind, as an artifact has them."""
    weights = sum(integers.stored_bytes(tensor) for tensor in chosen.tensors.values())
    return {"weights": weights, "rest": sum(len(content) for content in chosen.files.values())}


def assemble_recogniser(
    name: str, spec: ModelSpec, files: Mapping[str, bytes], functions: Mapping[str, Function], shipped: dict[str, int],
    runtime: str, threads: int,
) -> Recogniser:  # fmt: skip
    """A recogniser from its parts; the tokenizer, or the file of tokens, comes from ``files``."""
    assert spec.decoding
    return Recogniser(
        name=name, spec=spec, input=SoundInput(spec), transcribe=transcriber(functions, spec, files),
        scores=scorer(functions, spec.decoding), model=None, shipped=shipped, runtime=runtime, threads=threads,
    )  # fmt: skip


def _path(source: str | Path) -> Path:
    if networks.is_network(str(source)):
        return networks.place(str(source))
    for kind in (encoders, whispers):
        if str(source) in kind.BUILT_IN:
            carried: Path = kind.place(str(source))
            return carried
    path = Path(source)
    if not path.exists():
        raise UsageError(
            f"there is no model {str(source)!r}: neither a path, timm:NAME, package.module:function, nor one of the "
            f"built-in {', '.join(built_in_names())}"
        )
    return path / SEARCHED if artifact.is_artifact(path / SEARCHED) else path
