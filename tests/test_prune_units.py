"""What goes together when a network is pruned: forward equality of the cut graph with the masked one."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from slimseek import choose
from slimseek.errors import UsageError
from slimseek.methods.prune._removal import removed
from slimseek.methods.prune._units import Units, units
from small import tiny_bert

TINY = Path(__file__).parent.parent.parent / "shared" / "data" / "tinymodels"
PICTURES = ((2, 12), (1, 16), (5, 20))
TEXTS = ((2, 6), (1, 9), (4, 3))


# ---------------------------------------------------------------- tools


def exported(
    network: nn.Module, shape: Sequence[int | str], *, modern: bool = False, integers: bool = False
) -> onnx.ModelProto:
    """The network as an ONNX graph; axes of ``shape`` that are named are free."""
    sizes = [{"batch": 2, "free": 12}.get(axis, axis) if isinstance(axis, str) else axis for axis in shape]
    example = torch.zeros(sizes, dtype=torch.int64) if integers else torch.randn(sizes)
    free = {place: f"{axis}{place}" for place, axis in enumerate(shape) if isinstance(axis, str)}
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if modern:
            shapes = ({place: torch.export.Dim.AUTO for place in free},)
            program = torch.onnx.export(
                network, (example,), dynamo=True, dynamic_shapes=shapes, input_names=["given"], verbose=False
            )
            assert program is not None
            return program.model_proto
        torch.onnx.export(
            network, (example,), file, dynamo=False, input_names=["given"], dynamic_axes={"given": free},
            opset_version=17, training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


def lively(network: nn.Module) -> nn.Module:
    """Random statistics, scales and shifts, so that none of them can be lost unseen."""
    torch.manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2.0)
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.3, 1.2)
    return network.eval()


def computed(graph: onnx.ModelProto, given: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {graph.graph.input[0].name: given})


def numbers(graph: onnx.ModelProto) -> int:
    return sum(numpy_helper.to_array(tensor).size for tensor in floats(graph))


def floats(graph: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from (tensor for tensor in graph.graph.initializer if tensor.data_type == TensorProto.FLOAT)
    for node in graph.graph.node:
        if node.op_type == "Constant":
            yield from (one.t for one in node.attribute if one.t.data_type == TensorProto.FLOAT)


def makers(graph: onnx.ModelProto) -> dict[str, int | None]:
    """The axis of each weight that makes channels; ``None`` for a vector, which is masked as it is."""
    found: dict[str, int | None] = {}
    for node in graph.graph.node:
        settings = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        axis = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}.get(node.op_type)
        axis = 1 - settings.get("transB", 0) if node.op_type == "Gemm" else axis
        if axis is not None:
            found[node.input[1]] = axis
        if node.op_type == "Gather":
            found[node.input[0]] = 1
        if node.op_type == "BatchNormalization":
            found |= dict.fromkeys(node.input[3:5], -1)  # statistics stay as they are
    return found


def masked(graph: onnx.ModelProto, found: Units, chosen: Sequence[int]) -> onnx.ModelProto:
    """Zeros in what makes the channels of these units: rows of weights, biases, scales and shifts."""
    result = onnx.ModelProto()
    result.CopyFrom(graph)
    axis_of = makers(graph)
    named = {tensor.name: tensor for tensor in result.graph.initializer}
    named |= {node.output[0]: node.attribute[0].t for node in result.graph.node if node.op_type == "Constant"}
    for (name, axis), line in found.places.items():
        array = numpy_helper.to_array(named[name]).copy()
        if axis_of.get(name, axis) == axis:
            np.moveaxis(array, axis, 0)[np.isin(line, chosen)] = 0
            named[name].CopyFrom(numpy_helper.from_array(array, named[name].name))
    return result


def a_third(found: Units) -> list[int]:
    generator = np.random.default_rng(0)
    return [unit for group in found.groups if len(group.units) > 1
            for unit in generator.permutation(group.units)[: max(1, len(group.units) // 3)].tolist()]  # fmt: skip


def widths(graph: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name.removeprefix("parts."): tuple(tensor.dims) for tensor in graph.graph.initializer}


def check(
    graph: onnx.ModelProto, shapes: Sequence[Sequence[int]], *, integers: bool = False, valid: bool = True
) -> Units:
    """A third of every group goes: the cut graph gives what the masked one gives, at every shape, and is smaller."""
    before = graph.SerializeToString()
    found = units(graph, {})
    chosen = a_third(found)
    assert chosen, "nothing can be pruned"
    less, rest = removed(graph, {}, found, chosen)
    assert graph.SerializeToString() == before, "what was given stays as it was"
    assert rest == {}
    if valid:
        onnx.checker.check_model(less)
    zeros = masked(graph, found, chosen)
    generator = np.random.default_rng(1)
    for shape in shapes:
        given = generator.integers(0, 5, shape) if integers else generator.normal(size=shape).astype(np.float32)
        for expected, result in zip(computed(zeros, given), computed(less, given), strict=True):
            assert expected.shape == result.shape
            assert np.allclose(expected, result, atol=1e-5, rtol=1e-4), np.abs(expected - result).max()
    assert numbers(less) < numbers(graph)
    return found


def by_kind(graph: onnx.ModelProto, kind: str) -> Units:
    """Checked on pictures, or on texts."""
    if kind == "picture":
        return check(graph, [(rows, 3, size, size) for rows, size in PICTURES])
    return check(graph, TEXTS, integers=True)


def takes(found: Units, name: str, axis: int = 0) -> tuple[int, dict[tuple[str, int], int]]:
    """The group that a weight's axis belongs to: how many units, and how many indices each takes where."""
    place = (name if (name, axis) in found.places else f"parts.{name}", axis)
    [group] = [group for group in found.groups if place in group.places]
    return len(group.units), {(key[0].removeprefix("parts."), key[1]): times for key, times in group.places.items()}


# ---------------------------------------------------------------- networks


Parts = nn.ModuleDict
Forward = Callable[[Parts, torch.Tensor], torch.Tensor]


class Wired(nn.Module):
    """Parts and how they are put together."""

    def __init__(self, forward: Forward, **parts: nn.Module) -> None:
        super().__init__()
        self.parts, self._forward = nn.ModuleDict(parts), forward

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self._forward(self.parts, given)


def between(through: Forward, channels: int, **parts: nn.Module) -> nn.Module:
    """A convolution of 3 to 16 channels, what is in between, and a head that takes ``channels``."""

    def forward(of: Parts, given: torch.Tensor) -> torch.Tensor:
        value = through(of, torch.relu(of["first"](given)))
        return of["out"](torch.relu(of["last"](value)).mean((2, 3)))

    return Wired(forward, first=nn.Conv2d(3, 16, 3, padding=1), last=nn.Conv2d(channels, 7, 1), out=nn.Linear(7, 5),
                 **parts)  # fmt: skip


def chain(*parts: nn.Module, channels: int) -> nn.Module:
    return between(lambda of, value: of["middle"](value), channels, middle=nn.Sequential(*parts))


def residual(of: Parts, value: torch.Tensor) -> torch.Tensor:
    return torch.relu(value + of["norm"](of["inside"](value)))


def joined(of: Parts, value: torch.Tensor) -> torch.Tensor:
    return torch.cat([of["one"](value), value, of["two"](value)], 1)


def partial(of: Parts, value: torch.Tensor) -> torch.Tensor:
    head, tail = torch.split(value, [4, 12], 1)
    return torch.cat([of["inside"](head), tail], 1)


def shuffled(of: Parts, value: torch.Tensor) -> torch.Tensor:
    left, right = value.chunk(2, 1)
    value = torch.cat([left, torch.relu(of["inside"](right))], 1)
    rows, channels, height, width = value.shape
    return value.view(rows, 2, channels // 2, height, width).transpose(1, 2).reshape(rows, channels, height, width)


def excited(of: Parts, value: torch.Tensor) -> torch.Tensor:
    mean = functional.adaptive_avg_pool2d(value, 1).flatten(1)
    gate = torch.sigmoid(of["up"](torch.relu(of["down"](mean))))
    return value * gate.view(value.shape[0], value.shape[1], 1, 1)


def padded(of: Parts, value: torch.Tensor) -> torch.Tensor:
    return torch.relu(of["inside"](value) + functional.pad(value, (0, 0, 0, 0, 4, 4)))


def resized(of: Parts, value: torch.Tensor) -> torch.Tensor:
    small = torch.relu(of["inside"](value))
    return torch.cat([value, functional.interpolate(small, size=value.shape[2:], mode="nearest")], 1)


class Attention(nn.Module):
    """A small transformer block, its attention written in one of the ways that there are."""

    def __init__(self, way: str, heads: int = 4, kept: int | None = None, dim: int = 6) -> None:
        super().__init__()
        self.way, self.heads, self.kept, self.dim = way, heads, kept or heads, dim
        self.table, self.first_norm, self.last_norm = nn.Embedding(11, 20), nn.LayerNorm(20), nn.LayerNorm(20)
        sizes = {"fused": 3 * heads * dim} if way.startswith("fused") else {
            "query": heads * dim, "key": self.kept * dim, "value": self.kept * dim}  # fmt: skip
        self.given = nn.ModuleDict({name: nn.Linear(20, size) for name, size in sizes.items()})
        self.out, self.up, self.down = nn.Linear(heads * dim, 20), nn.Linear(20, 24), nn.Linear(24, 20)
        self.distance = nn.Embedding(31, heads)
        self.head_norm = nn.LayerNorm(dim)
        self.register_buffer("frequencies", 100.0 ** -(torch.arange(0, dim, 2) / dim))

    def projected(self, value: torch.Tensor) -> list[torch.Tensor]:
        """Query, key and value, [batch, heads, length, dim] each."""
        rows, length, _ = value.shape
        if self.way == "fused three":
            fused = self.given["fused"](value).reshape(rows, length, 3, self.heads, self.dim)
            return list(fused.permute(2, 0, 3, 1, 4).unbind(0))
        if self.way == "fused by head":
            fused = self.given["fused"](value).view(rows, length, self.heads, 3 * self.dim)
            return list(fused.transpose(1, 2).split(self.dim, -1))
        parts = ([part(value) for part in self.given.values()] if self.way != "fused chunk" else
                 self.given["fused"](value).chunk(3, -1))  # fmt: skip
        return [part.view(rows, length, -1, self.dim).transpose(1, 2) for part in parts]

    def rotated(self, value: torch.Tensor) -> torch.Tensor:
        angles = torch.arange(value.shape[2])[:, None] * self.frequencies[None]
        angles = torch.cat([angles, angles], -1)
        low, high = value[..., : self.dim // 2], value[..., self.dim // 2 :]
        return value * angles.cos() + torch.cat([-high, low], -1) * angles.sin()

    def attended(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        rows, _, length, _ = query.shape
        if self.way == "runtime":
            return functional.scaled_dot_product_attention(query, key, value)
        if self.way == "letters":
            scores = torch.softmax(torch.einsum("bhqd,bhkd->bhqk", query, key), -1)
            return torch.einsum("bhqk,bhkd->bhqd", scores, value)
        if self.way == "batch":
            query, key, value = (part.reshape(rows * self.heads, -1, self.dim) for part in (query, key, value))
            scores = torch.softmax(torch.bmm(query, key.transpose(1, 2)), -1)
            return torch.bmm(scores, value).view(rows, self.heads, length, self.dim)
        scores = query @ key.transpose(-1, -2) / self.dim**0.5
        if self.way == "distance":
            place = torch.arange(length)
            scores = scores + self.distance(place[:, None] - place[None] + 15).permute(2, 0, 1)[None]
        return torch.softmax(scores, -1) @ value

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        before = self.first_norm(self.table(ids))
        rows, length = ids.shape
        query, key, value = self.projected(before)
        if self.way == "rotated":
            query, key = self.rotated(self.head_norm(query)), self.rotated(self.head_norm(key))
        if self.kept != self.heads:
            shape = (rows, self.kept, self.heads // self.kept, length, self.dim)
            key, value = (part[:, :, None].expand(shape).reshape(rows, self.heads, length, self.dim)
                          for part in (key, value))  # fmt: skip
        attended = self.attended(query, key, value).transpose(1, 2).reshape(rows, length, self.heads * self.dim)
        after = self.first_norm(before + self.out(attended))
        return self.last_norm(after + self.down(functional.gelu(self.up(after)))).mean(1)


def conv(given: int, made: int, groups: int = 1, size: int = 3) -> nn.Module:
    return nn.Conv2d(given, made, size, padding=size // 2, groups=groups)


def transposed(given: int, made: int, groups: int = 1) -> nn.Module:
    return nn.ConvTranspose2d(given, made, 3, stride=2, groups=groups)


def normed(layer: nn.Module, channels: int) -> list[nn.Module]:
    return [layer, nn.BatchNorm2d(channels), nn.ReLU()]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: between(residual, 16, inside=conv(16, 16), norm=nn.BatchNorm2d(16)),
    "concat": lambda: between(joined, 27, one=conv(16, 6), two=conv(16, 5)),
    "concat with an input": lambda: Wired(
        lambda of, given: of["last"](torch.cat([torch.relu(of["first"](given)), given], 1)).mean((2, 3)),
        first=conv(3, 8), last=conv(11, 4)),
    "split": lambda: between(partial, 16, inside=conv(4, 4)),
    "chunk and shuffle": lambda: between(shuffled, 16, inside=nn.Sequential(*normed(conv(8, 8), 8), conv(8, 8, 8))),
    "slice": lambda: between(lambda of, value: value[:, 3:13], 10),
    "constant numbers": lambda: between(lambda of, value: value[:, torch.tensor([3, 1, 2, 9, 10, 15, 8, 0])], 8),
    "pixel shuffle": lambda: chain(*normed(conv(16, 24), 24), nn.PixelShuffle(2), channels=6),
    "pixel unshuffle": lambda: chain(nn.PixelUnshuffle(2), channels=64),
    "grouped": lambda: chain(*normed(conv(16, 24, 4), 24), channels=24),
    "grouped, one output each": lambda: chain(conv(16, 4, 4), nn.ReLU(), channels=4),
    "depthwise": lambda: chain(*normed(conv(16, 16, 16), 16), channels=16),
    "depthwise with multiplier": lambda: chain(*normed(conv(16, 48, 16), 48), channels=48),
    "transposed": lambda: chain(*normed(transposed(16, 12), 12), channels=12),
    "transposed, grouped": lambda: chain(*normed(transposed(16, 12, 2), 12), channels=12),
    "transposed, depthwise": lambda: chain(*normed(transposed(16, 32, 16), 32), channels=32),
    "group norm": lambda: chain(conv(16, 12), nn.GroupNorm(4, 12), nn.ReLU(), channels=12),
    "instance norm": lambda: chain(conv(16, 12), nn.InstanceNorm2d(12, affine=True), nn.ReLU(), channels=12),
    "squeeze-excitation": lambda: between(excited, 16, down=nn.Linear(16, 6), up=nn.Linear(6, 16)),
    "slopes of a rectifier": lambda: chain(conv(16, 12), nn.PReLU(12), channels=12),
    "padded channels": lambda: between(padded, 24, inside=conv(16, 24)),
    "resized": lambda: between(resized, 24, inside=nn.Conv2d(16, 8, 3, stride=2, padding=1)),
    "shared module": lambda: between(
        lambda of, value: torch.relu(of["inside"](torch.relu(of["inside"](value)))), 16, inside=conv(16, 16)),
    "pooling": lambda: chain(nn.MaxPool2d(2), conv(16, 9), nn.AvgPool2d(2), channels=9),
}  # fmt: skip
ATTENTION: dict[str, Callable[[], nn.Module]] = {
    **{way: lambda way=way: Attention(way) for way in (
        "plain", "runtime", "fused three", "fused chunk", "fused by head", "batch", "letters", "distance", "rotated")},
    "grouped queries": lambda: Attention("plain", heads=6, kept=3),
    "grouped queries, rotated": lambda: Attention("rotated", heads=6, kept=3),
}  # fmt: skip


# ---------------------------------------------------------------- forward equality


@pytest.mark.parametrize("name", NETWORKS)
def test_a_cut_network_of_pictures_gives_what_the_masked_one_gives(name: str) -> None:
    by_kind(exported(lively(NETWORKS[name]()), ("batch", 3, "free", "free")), "picture")


@pytest.mark.parametrize("name", ["chunk and shuffle", "group norm", "squeeze-excitation", "pixel shuffle"])
def test_the_other_exporters_graphs_are_cut_as_well(name: str) -> None:
    by_kind(exported(lively(NETWORKS[name]()), ("batch", 3, "free", "free"), modern=True), "picture")


@pytest.mark.parametrize("modern", [False, True])
@pytest.mark.parametrize("name", ATTENTION)
def test_heads_and_the_feed_forward_width_go_whatever_way_attention_is_written(name: str, modern: bool) -> None:
    network = lively(ATTENTION[name]())
    found = by_kind(exported(network, ("batch", "free"), modern=modern, integers=True), "text")
    units_of = sorted(len(group.units) for group in found.groups)
    assert units_of == [network.kept, 24], "heads, or heads that share a key, and the feed-forward width"
    heads = min(found.groups, key=lambda group: len(group.units))
    shared = network.heads // network.kept  # type: ignore[operator]
    widest = 18 if name.startswith("fused") else 6 * shared  # type: ignore[operator]
    assert max(heads.places.values()) == widest


def test_torchs_own_attention_loses_heads() -> None:
    block = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
    network = Wired(lambda of, ids: of["out"](of["block"](of["table"](ids)).mean(1)),
                    table=nn.Embedding(11, 16), block=block, out=nn.Linear(16, 3))  # fmt: skip
    found = by_kind(exported(lively(network), ("batch", "free"), modern=True, integers=True), "text")
    assert sorted(len(group.units) for group in found.groups) == [4, 32]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_are_listed_as_left_alone(kind: type[nn.Module]) -> None:
    """P11."""
    layer = kind(8, 6, batch_first=True, bidirectional=True, num_layers=2)
    network = Wired(
        lambda of, ids: of["out"](torch.relu(of["after"](of["layer"](of["before"](of["table"](ids)))[0][:, -1]))),
        table=nn.Embedding(11, 16), before=nn.Linear(16, 8), layer=layer, after=nn.Linear(12, 10), out=nn.Linear(10, 4),
    )  # fmt: skip
    found = by_kind(exported(lively(network), ("batch", "free"), integers=True), "text")
    assert [name.split()[0] for name in found.skipped] == [kind.__name__] * 2
    assert sorted(len(group.units) for group in found.groups) == [10, 16], "what stands around it is pruned"


def test_a_table_tied_to_the_last_layer_stays_tied() -> None:
    """P20."""
    network = Wired(lambda of, ids: of["words"](of["table"](ids) + of["down"](torch.relu(of["up"](of["table"](ids))))),
                    table=nn.Embedding(100, 32), up=nn.Linear(32, 24), down=nn.Linear(24, 32),
                    words=nn.Linear(32, 100, bias=False))  # fmt: skip
    network.parts["words"].weight = network.parts["table"].weight
    graph = exported(lively(network), ("batch", "free"), integers=True)
    found = by_kind(graph, "text")
    table = next(tensor.name for tensor in graph.graph.initializer if tuple(tensor.dims) == (100, 32))
    assert (table, 1) in found.places
    assert (table, 0) not in found.places, "words stay"
    assert "looked up" in found.stays[table, 0] or "output" in found.stays[table, 0]


def by_hand(
    inside: Sequence[onnx.NodeProto], channels: int, constants: dict[str, np.ndarray], opset: int = 21
) -> onnx.ModelProto:
    """A convolution of 3 to 8 channels gives ``x``, the nodes make ``y`` of it, one of ``channels`` to 4 takes that."""
    generator = np.random.default_rng(0)
    weights = {"first": (8, 3, 3, 3), "bias": (8,), "last": (4, channels, 1, 1)}
    tensors = {name: generator.normal(size=shape).astype(np.float32) for name, shape in weights.items()} | constants
    value = helper.make_tensor_value_info("given", TensorProto.FLOAT, ("N", 3, "H", "W"))
    nodes = [NODE("Conv", ["given", "first", "bias"], ["c"], pads=[1, 1, 1, 1]), NODE("Relu", ["c"], ["x"]), *inside,
             NODE("Conv", ["y", "last"], ["z"])]  # fmt: skip
    graph = helper.make_graph(
        nodes, "by_hand", [value], [helper.make_tensor_value_info("z", TensorProto.FLOAT, ("N", 4, None, None))],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


ONES, NODE = np.ones(8, np.float32), helper.make_node
HAND_MADE: dict[str, tuple[list[onnx.NodeProto], int, dict[str, np.ndarray], int]] = {
    "depth to space, blocks first": ([NODE("DepthToSpace", ["x"], ["y"], blocksize=2)], 2, {}, 21),
    "space to depth": ([NODE("SpaceToDepth", ["x"], ["y"], blocksize=2)], 32, {}, 21),
    "group norm": ([NODE("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=4)], 8,
                   {"s": ONES * 2, "b": ONES}, 21),
    "group norm by groups": ([NODE("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=4)], 8,
                             {"s": ONES[:4] * 2, "b": ONES[:4]}, 18),
    "tile": ([NODE("Tile", ["x", "t"], ["y"])], 24, {"t": integers(1, 3, 1, 1)}, 21),
    "old slice": ([NODE("Slice", ["x"], ["y"], starts=[2], ends=[-1], axes=[1])], 5, {}, 9),
    "old split": ([NODE("Split", ["x"], ["p", "q"], axis=1, split=[3, 5]), NODE("Concat", ["q", "p"], ["y"], axis=1)],
                  8, {}, 11),
    "even split": ([NODE("Split", ["x"], ["p", "q"], axis=1, num_outputs=2), NODE("Concat", ["q", "p"], ["y"], axis=1)],
                   8, {}, 18),
    "backwards": ([NODE("Gather", ["x", "n"], ["y"], axis=1)], 9, {"n": integers(-1, 6, 5, 4, 3, 2, 1, 0, 0)}, 21),
    "sizes in one constant": ([NODE("Reshape", ["x", "r"], ["p"]), NODE("Transpose", ["p"], ["q"], perm=[0, 2, 1, 3]),
                               NODE("Shape", ["x"], ["f"]), NODE("Reshape", ["q", "f"], ["y"])], 8,
                              {"r": integers(0, 4, 2, -1)}, 21),
    "sum over channels": ([NODE("ReduceSum", ["x", "a"], ["y"], keepdims=1)], 1, {"a": integers(1)}, 21),
}  # fmt: skip


@pytest.mark.parametrize("name", HAND_MADE)
def test_operators_that_torch_seldom_writes(name: str) -> None:
    inside, channels, constants, opset = HAND_MADE[name]
    graph = by_hand(inside, channels, constants, opset)
    valid = name != "group norm by groups"  # deprecated before it was mended, and still around
    found = check(graph, [(2, 3, 8, 8), (1, 3, 6, 12), (3, 3, 4, 4)], valid=valid)
    assert ("first", 0) in found.places
    assert found.skipped == ()


def test_an_unknown_operator_holds_what_it_takes_and_is_named() -> None:
    graph = by_hand([NODE("TopK", ["x", "k"], ["y", "n"], axis=1, name="best")], 8, {"k": integers(8)})
    found = units(graph, {})
    assert found.skipped == ("TopK best",)
    assert found.groups == ()
    assert found.stays["first", 0] == "TopK best"


def test_the_second_copy_of_a_weight_goes_with_the_first() -> None:
    """As exporters store a table that is also a last layer, where nothing else ties their widths."""
    generator = np.random.default_rng(0)
    sizes = {"table": (20, 8), "up": (8, 6), "down": (6, 8)}
    tensors = {name: generator.normal(size=shape).astype(np.float32) for name, shape in sizes.items()}
    tensors["table#2"] = np.ascontiguousarray(tensors["table"].T)
    nodes = [NODE("Gather", ["table", "given"], ["a"]), NODE("MatMul", ["a", "up"], ["b"]), NODE("Relu", ["b"], ["c"]),
             NODE("MatMul", ["c", "down"], ["d"]), NODE("MatMul", ["d", "table#2"], ["e"])]  # fmt: skip
    graph = helper.make_graph(
        nodes, "tied", [helper.make_tensor_value_info("given", TensorProto.INT64, ("N", "L"))],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, ("N", "L", 20))],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=8)
    found = check(model, TEXTS, integers=True)
    less, _ = removed(model, {}, found, a_third(found))
    after = {tensor.name: numpy_helper.to_array(tensor) for tensor in less.graph.initializer}
    assert after["table"].shape == (20, 6)
    assert np.array_equal(after["table"], after["table#2"].T)


# ---------------------------------------------------------------- widths by hand


def test_p1_both_halves_of_a_doubled_value_lose_the_same_in_six_steps() -> None:
    network = Wired(
        lambda of, given: of["out"](of["b"](torch.cat([of["a"](given)] * 2, 1)).mean((2, 3))),
        a=nn.Sequential(conv(3, 64), nn.BatchNorm2d(64), nn.GELU()),
        b=nn.Sequential(conv(128, 64), nn.BatchNorm2d(64)), out=nn.Linear(64, 2),
    )  # fmt: skip
    graph = exported(lively(network), ("batch", 3, "free", "free"))
    for step in range(1, 7):
        found = check(graph, [(2, 3, 8, 8)])
        chosen = [unit for group in found.groups for unit in group.units[::2][:8].tolist()]
        graph, _ = removed(graph, {}, found, chosen)
        kept = 64 - 8 * step
        assert widths(graph)["b.0.weight"] == (kept, 2 * kept, 3, 3)
        computed(graph, np.zeros((3, 3, 9, 9), np.float32))
    assert widths(graph)["a.0.weight"] == (16, 3, 3, 3)


def test_p3_split_sizes_follow() -> None:
    graph = exported(lively(NETWORKS["split"]()), ("batch", 3, "free", "free"))
    found = check(graph, [(2, 3, 8, 8)])
    head = found.places["parts.first.weight", 0][:4]
    tail = found.places["parts.first.weight", 0][4:]
    assert not set(head) & set(tail)
    less, _ = removed(graph, {}, found, [head[1], tail[0], tail[5]])
    assert widths(less)["inside.weight"] == (4, 3, 3, 3)
    assert widths(less)["last.weight"] == (7, 4 + 10, 1, 1)
    assert computed(less, np.zeros((2, 3, 8, 8), np.float32))[0].shape == (2, 5)


@pytest.mark.parametrize("way", ["flatten", "view", "flatten from 0"])
def test_p5_a_channel_takes_its_columns_with_it(way: str) -> None:
    flat: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "flatten": lambda value: value.flatten(1), "view": lambda value: value.view(-1, 16),
        "flatten from 0": lambda value: value.flatten(0)}  # fmt: skip
    network = Wired(lambda of, given: of["out"](torch.relu(of["linear"](flat[way](torch.relu(of["first"](given)))))),
                    first=nn.Conv2d(2, 4, 3), linear=nn.Linear(16, 8), out=nn.Linear(8, 3))  # fmt: skip
    alone = way == "flatten from 0"
    graph = exported(lively(network), (2, 4, 4) if alone else ("batch", 2, 4, 4))
    found = check(graph, [(2, 4, 4)] if alone else [(rows, 2, 4, 4) for rows in (2, 1, 5)])
    line = found.places["parts.first.weight", 0]
    assert np.array_equal(found.places["parts.linear.weight", 1], np.repeat(line, 4)), "channel-major"
    less, _ = removed(graph, {}, found, [int(line[1])])
    before, after = (
        next(numpy_helper.to_array(one) for one in model.graph.initializer if one.name == "parts.linear.weight")
        for model in (graph, less)
    )
    assert np.array_equal(after, np.delete(before, [4, 5, 6, 7], 1))


def test_p7_a_convolution_with_one_output_is_not_depthwise() -> None:
    network = Wired(lambda of, given: of["norm"](of["c"](torch.relu(of["b"](torch.relu(of["a"](given)))))),
                    a=conv(3, 16), b=conv(16, 64), c=conv(64, 1), norm=nn.BatchNorm2d(1))  # fmt: skip
    graph = exported(lively(network), ("batch", 3, "free", "free"))
    found = by_kind(graph, "picture")
    less, _ = removed(graph, {}, found, found.places["parts.b.weight", 0][:32])
    assert widths(less)["c.weight"] == (1, 32, 3, 3)


@pytest.mark.parametrize("groups", [1, 4, 16])
def test_p8_everything_in_a_sum_goes_together_and_groups_stay_alike(groups: int) -> None:
    parts = {f"deep{number}": nn.Sequential(conv(16, 16, groups), conv(16, 16, size=1)) for number in range(3)}

    def middle(of: Parts, value: torch.Tensor) -> torch.Tensor:
        return value + sum(of[name](functional.elu(value)) for name in parts)

    graph = exported(lively(between(middle, 16, **parts)), ("batch", 3, "free", "free"))
    found = by_kind(graph, "picture")
    count, places = takes(found, "first.weight")
    each = groups if groups == 4 else 1
    assert count == 16 // each
    assert all(places[f"deep{number}.1.weight", 0] == each for number in range(3))
    chosen = found.places["parts.first.weight", 0][:2]
    less, _ = removed(graph, {}, found, chosen)
    left = 16 - 2 * each
    assert widths(less)["last.weight"] == (7, left, 1, 1)
    made = 16 if groups != 16 else left  # the outputs of ordinary and grouped ones are units of their own
    assert widths(less)["deep0.0.weight"] == (made, left // (left if groups == 16 else groups), 3, 3)


@pytest.mark.parametrize("downsample", [False, True])
def test_p10_a_bottleneck_with_squeeze_excitation_has_one_width(downsample: bool) -> None:
    down = {"shortcut": nn.Sequential(conv(16, 16, size=1), nn.BatchNorm2d(16))} if downsample else {}

    def middle(of: Parts, value: torch.Tensor) -> torch.Tensor:
        inside = excited(of, of["wide"](torch.relu(of["deep"](torch.relu(of["thin"](value))))))
        return torch.relu(inside + (of["shortcut"](value) if downsample else value))

    network = between(middle, 16, thin=conv(16, 4, size=1), deep=conv(4, 4), wide=conv(4, 16, size=1),
                      down=nn.Linear(16, 6), up=nn.Linear(6, 16), **down)  # fmt: skip
    found = by_kind(exported(lively(network), ("batch", 3, "free", "free")), "picture")
    count, places = takes(found, "wide.weight")
    assert count == 16
    assert places["up.weight", 0] == places["down.weight", 1] == places["last.weight", 1] == 1
    assert ("first.weight", 0) in places if not downsample else ("first.weight", 0) not in places
    assert takes(found, "thin.weight")[0] == takes(found, "deep.weight")[0] == 4


@pytest.mark.parametrize("groups", [2, 4])
def test_group_norm_loses_whole_groups(groups: int) -> None:
    """Others would change the mean of what is left in theirs."""
    network = chain(conv(16, 12), nn.GroupNorm(groups, 12), nn.ReLU(), channels=12)
    found = check(exported(lively(network), ("batch", 3, 12, 12)), [(2, 3, 12, 12), (5, 3, 12, 12)])
    count, places = takes(found, "middle.0.weight")
    assert (count, places["last.weight", 1]) == (groups, 12 // groups)


def test_a_channel_that_is_used_alone_stays() -> None:
    network = between(lambda of, value: value * torch.sigmoid(value[:, 2:3]), 16)
    found = by_kind(exported(lively(network), ("batch", 3, "free", "free")), "picture")
    line = found.places["parts.first.weight", 0]
    assert np.flatnonzero(line == -1).tolist() == [2]


def test_what_is_joined_to_an_input_keeps_the_inputs_channels() -> None:
    graph = exported(lively(NETWORKS["concat with an input"]()), ("batch", 3, "free", "free"))
    found = units(graph, {})
    line = found.places["parts.last.weight", 1]
    assert np.array_equal(line[:8], found.places["parts.first.weight", 0])
    assert line[8:].tolist() == [-1] * 3


def test_what_a_norm_sees_and_what_the_network_gives_stays() -> None:
    graph = exported(lively(Attention("plain")), ("batch", "free"), integers=True)
    found = units(graph, {})
    assert "normalised over" in found.stays["table.weight", 1]
    graph = exported(lively(NETWORKS["residual"]()), ("batch", 3, "free", "free"))
    assert units(graph, {}).stays["parts.out.weight", 0] == "output of the graph"


# ---------------------------------------------------------------- numbers, limits


def test_parameters_and_macs_of_a_unit_by_hand() -> None:
    graph = exported(lively(NETWORKS["grouped"]()), ("batch", 3, "free", "free"))
    found = units(
        graph, {}, [{"given": np.zeros((rows, 3, size, size), np.float32)} for rows, size in ((2, 8), (3, 9))]
    )
    unit = found.places["parts.first.weight", 0][0]
    # Four of 16 channels: their filters and biases, and one of the four inputs of every group's filters.
    assert found.parameters[unit] == 4 * (3 * 9 + 1) + 24 * 9
    assert found.macs[unit] == 8 * 8 * (4 * 3 * 9 + 24 * 9)


def test_the_last_of_a_width_is_refused() -> None:
    graph = exported(lively(NETWORKS["residual"]()), ("batch", 3, "free", "free"))
    found = units(graph, {})
    with pytest.raises(UsageError, match="without anything along axis"):
        removed(graph, {}, found, found.places["parts.first.weight", 0])


def test_nothing_chosen_changes_nothing() -> None:
    graph = exported(lively(NETWORKS["chunk and shuffle"]()), ("batch", 3, "free", "free"))
    less, _ = removed(graph, {}, units(graph, {}), [])
    given = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    assert np.array_equal(computed(graph, given)[0], computed(less, given)[0])


@pytest.mark.parametrize("file", sorted(TINY.glob("*.onnx")), ids=lambda file: file.stem)
def test_networks_for_small_machines_are_cut(file: Path) -> None:
    graph = onnx.load(file)
    fixed = [axis.dim_value for axis in graph.graph.input[0].type.tensor_type.shape.dim][1:]
    found = check(graph, [(rows, *fixed) for rows in (2, 1, 5)])
    assert found.skipped == ()
    assert min(len(group.units) for group in found.groups) > 1


def test_a_bert_loses_heads_and_feed_forward_units_and_keeps_its_width(tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    model = choose.model(tmp_path)
    graph = choose.family(model).to_onnx(model)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in floats(graph) if len(tensor.dims) == 2}
    bare = onnx.ModelProto()
    bare.CopyFrom(graph)
    del bare.graph.initializer[:]
    bare.graph.initializer.extend(one for one in graph.graph.initializer if one.name not in weights)
    found = units(bare, weights)
    assert sorted(len(group.units) for group in found.groups) == [4, 4, 64, 64]
    assert found.skipped == ()
    chosen = a_third(found)
    less, rest = removed(bare, weights, found, chosen)
    assert set(rest) == set(weights)
    less.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in rest.items())
    zeros = masked(graph, found, chosen)
    for rows, length in TEXTS:
        batch = {value.name: np.ones((rows, length), np.int64) for value in graph.graph.input}
        batch["input_ids"] = np.random.default_rng(0).integers(0, 9, (rows, length))
        batch["attention_mask"][-1, length // 2 :] = 0
        left, right = (onnxruntime.InferenceSession(one.SerializeToString()).run(None, batch)[0]
                       for one in (zeros, less))  # fmt: skip
        assert np.allclose(left, right, atol=1e-5)
