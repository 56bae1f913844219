"""Graphs to engines by TensorRT's own parser and builder, and engines on a GPU.

TensorRT-RTX builds for other GPUs on a machine without one; TensorRT needs the GPU that it builds for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from slimseek.backends._editor import Editor, finish
from slimseek.backends._fusion import LARGEST_SINGLE_FILE
from slimseek.backends._tensorrt.package import MOST_ROWS, Settings, Shapes
from slimseek.errors import UsageError, first_line
from slimseek.plugins import require
from slimseek.schema import Array, Batch, Encode

RTX, CLASSIC = "tensorrt_rtx", "tensorrt"
CAPABILITIES = ("SM80", "SM86", "SM89", "SM120")
"""GPUs that engines are built for as a check: Ampere, GeForce 30, Ada (GeForce 40), Blackwell (GeForce 50)."""
RTX_RUNS_ON = ((7, 5), (8, 0), (8, 6), (8, 9))
"""Compute capabilities that TensorRT-RTX opens engines on; so it does from ``RTX_RUNS_FROM`` on, but not on Hopper."""
RTX_RUNS_FROM = (12, 0)
NAMES = {RTX: "TensorRT-RTX", CLASSIC: "TensorRT"}
DEVICE = "cuda"


def parse(graph: onnx.ModelProto, library: str) -> tuple[Any, Any, list[str]]:
    """Builder, network, and the list that errors go to.

    Args:
        graph: as :mod:`slimseek.backends._tensorrt.graph` gives it.
        library: ``tensorrt_rtx`` or ``tensorrt``.

    Raises:
        UsageError: naming the operator that the library does not take.
    """
    if graph.ByteSize() > LARGEST_SINGLE_FILE:
        raise UsageError(f"the graph takes {graph.ByteSize()} bytes, and TensorRT reads 2 GB; compress the model first")
    runtime = require(library)
    errors: list[str] = []
    logger = _logger(runtime, errors)
    try:
        builder = runtime.Builder(logger)
    except (TypeError, RuntimeError) as error:  # what it raises where it finds no driver
        raise UsageError(f"{_named(runtime, library)} cannot start here: {first_line(error)}") from error
    network = builder.create_network(1 << int(runtime.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = runtime.OnnxParser(network, logger)
    if not parser.parse(graph.SerializeToString()):
        found = [parser.get_error(number) for number in range(parser.num_errors)]
        why = "; ".join(dict.fromkeys(f"{one.node_operator() or 'the graph'}: {one.desc()}" for one in found))
        raise UsageError(
            f"{_named(runtime, library)} does not take this model ({' '.join(why.split())}); deploy for onnxruntime "
            f"instead"
        )
    return builder, network, errors


def build(
    graph: onnx.ModelProto, profiles: Sequence[dict[str, Shapes]], library: str, capabilities: Sequence[str] = ()
) -> bytes:
    """A serialized engine, for the GPU of this machine or, by TensorRT-RTX, for compute capabilities such as ``SM89``.

    Raises:
        UsageError: the library takes the operators, but not what they do, or not for these GPUs.
    """
    runtime = require(library)
    builder, network, errors = parse(graph, library)
    config = builder.create_builder_config()
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
    for number, capability in enumerate(capabilities):
        config.set_compute_capability(getattr(runtime.ComputeCapability, capability), number)
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for name, one in shapes.items():
            profile.set_shape(name, one.min, one.opt, one.max)
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        why = " ".join((errors or ["no reason given"])[-1].split())
        raise UsageError(
            f"{_named(runtime, library)} cannot build an engine for {', '.join(capabilities) or 'this GPU'} ({why}); "
            f"deploy for onnxruntime instead"
        )
    return bytes(engine)


def check(
    graph: onnx.ModelProto, profiles: Sequence[dict[str, Shapes]], library: str
) -> tuple[int, tuple[str, ...], dict[str, str]]:
    """Bytes of one engine, the compute capabilities that it is for, and why others have none; nothing runs.

    Raises:
        UsageError: there is none at all.
    """
    ready = folded(graph)
    if library != RTX:
        return len(build(ready, profiles, library)), (_here(),), {}
    refused: dict[str, str] = {}
    try:
        return len(build(ready, profiles, library, CAPABILITIES)), CAPABILITIES, refused
    except UsageError:
        for capability in CAPABILITIES:
            try:
                build(ready, profiles, library, (capability,))
            except UsageError as error:
                refused[capability] = str(error)
    taken = tuple(capability for capability in CAPABILITIES if capability not in refused)
    if not taken:
        raise UsageError(next(iter(refused.values())))
    return len(build(ready, profiles, library, taken)), taken, refused


def folded(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with weights that QuantizeLinear rounds stored as the integers of eight bits that come out.

    Packages hold the artifact's fewer bits; the builder would round them with every query.
    """
    known = {constant.name for constant in graph.graph.initializer} | {""}
    nodes, ends = [], []
    for node in graph.graph.node:
        if known.issuperset(node.input):
            known.update(node.output)
            nodes.append(node)
            if node.op_type == "QuantizeLinear":
                ends.append(node.output[0])
    if not ends:
        return graph
    part = helper.make_model(
        helper.make_graph(
            nodes, "weights", [], [helper.make_tensor_value_info(name, TensorProto.INT8, None) for name in ends],
            graph.graph.initializer,
        ),
        opset_imports=graph.opset_import, ir_version=graph.ir_version,
    )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = dict(zip(ends, session.run(ends, {}), strict=True))
    editor = Editor(graph.graph)
    for node in graph.graph.node:
        if node.output[0] in values:
            editor.constant(node.output[0], values[node.output[0]])
        else:
            editor.nodes.append(node)
    return finish(graph, editor)


def device(library: str) -> str | None:
    """``None`` where an engine of this library can run, else why not; PyTorch, which is slow to load, is asked last."""
    driver = _devices()
    if driver is not None:
        return driver
    if importlib.util.find_spec("torch") is None:
        return "PyTorch, whose buffers on the GPU are used, is not installed; run: pip install torch"
    cuda = require("torch").cuda
    if not cuda.is_available():
        return "this PyTorch finds no GPU; install a build of it with CUDA (https://pytorch.org)"
    capability = cuda.get_device_capability()
    if library == RTX and capability not in RTX_RUNS_ON and capability < RTX_RUNS_FROM:
        return (
            f"TensorRT-RTX does not run on {cuda.get_device_name()}, whose compute capability is "
            f"{capability[0]}.{capability[1]} (7.5, 8.0, 8.6, 8.9, and 12.0 or newer are); install TensorRT itself: "
            f"pip install tensorrt"
        )
    return None


def runner(graph: onnx.ModelProto, settings: Settings, library: str) -> Encode:
    """An ``Encode`` on the first GPU: an engine built for it, and one context for each profile.

    Raises:
        UsageError: no engine can be built or opened here; in the ``Encode``, a row is longer than the package takes.
    """
    torch, runtime = require("torch"), require(library)
    errors: list[str] = []
    logger = _logger(runtime, errors)
    opener = runtime.Runtime(logger)
    engine = opener.deserialize_cuda_engine(build(folded(graph), settings.profiles, library))
    if engine is None:
        raise UsageError(
            f"{_named(runtime, library)} cannot open its engine here: {(errors or ['no reason given'])[-1]}"
        )
    stream = torch.cuda.Stream()
    contexts = []
    for number in range(len(settings.profiles)):
        context = engine.create_execution_context()
        if context is None or not context.set_optimization_profile_async(number, stream.cuda_stream):
            raise UsageError(
                f"{_named(runtime, library)} has no memory for its engine: {(errors or ['none said'])[-1]}"
            )
        contexts.append(context)
    stream.synchronize()
    output = graph.graph.output[0].name

    def run(batch: Batch, profile: int) -> Array:
        context = contexts[profile]
        inputs = {name: torch.from_numpy(np.ascontiguousarray(rows)).to(DEVICE) for name, rows in batch.items()}
        for name, rows in inputs.items():
            context.set_input_shape(name, tuple(rows.shape))
            context.set_tensor_address(name, rows.data_ptr())
        result = torch.empty(tuple(context.get_tensor_shape(output)), dtype=torch.float32, device=DEVICE)
        context.set_tensor_address(output, result.data_ptr())
        torch.cuda.current_stream().synchronize()  # the inputs were copied on another stream
        if not context.execute_async_v3(stream.cuda_stream):
            raise UsageError(f"{_named(runtime, library)} failed: {(errors or ['no reason given'])[-1]}")
        stream.synchronize()
        vectors: Array = result.cpu().numpy()
        return vectors

    return in_parts(run, settings.profiles, (opener, engine))


def in_parts(run: Any, profiles: Sequence[dict[str, Shapes]], kept: object = None) -> Encode:
    """An ``Encode`` of any batch from what takes at most ``MOST_ROWS`` rows, one row by the first profile.

    Args:
        run: (batch, number of the profile) -> float32 [rows, dim].
        profiles: as :func:`slimseek.backends._tensorrt.package.profiles` gives them.
        kept: what must live as long as the ``Encode``.

    Returns:
        The ``Encode``; it raises UsageError for shapes that no profile takes.
    """
    largest = {name: shapes.max[1:] for name, shapes in profiles[-1].items()}

    def encode(batch: Batch, kept: object = kept) -> Array:
        for name, rows in batch.items():
            if any(size > most for size, most in zip(rows.shape[1:], largest[name], strict=True)):
                raise UsageError(f"{name} has rows of shape {list(rows.shape[1:])}; the package takes at most "
                                 f"{list(largest[name])}")  # fmt: skip
        count = len(next(iter(batch.values())))
        found = []
        for start in range(0, count, MOST_ROWS):
            part = {name: rows[start : start + MOST_ROWS] for name, rows in batch.items()}
            found.append(run(part, int(min(MOST_ROWS, count - start) > 1)))
        return np.concatenate(found) if found else np.zeros((0, 0), np.float32)

    return encode


def _devices() -> str | None:
    """``None`` where NVIDIA's driver finds a GPU, else what is missing."""
    import ctypes

    try:
        driver = ctypes.CDLL("nvcuda.dll" if hasattr(ctypes, "WinDLL") else "libcuda.so.1")
    except OSError:
        return "this machine has no NVIDIA driver, and TensorRT runs on NVIDIA GPUs only"
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "NVIDIA's driver finds no GPU here"
    return None


def _here() -> str:
    return "SM{}{}".format(*require("torch").cuda.get_device_capability())


def _logger(runtime: Any, errors: list[str]) -> Any:
    """A logger that keeps errors for messages and drops the rest."""

    class Kept(runtime.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            runtime.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= runtime.ILogger.Severity.ERROR:
                errors.append(message)

    return Kept()


def _named(runtime: Any, library: str) -> str:
    return f"{NAMES[library]} {runtime.__version__}"
