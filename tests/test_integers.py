"""Integers against values worked by hand, a search over all levels, and PyTorch's own rounding."""

from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load_file, save_file

from slimseek.errors import UsageError
from slimseek.integers import (
    dequantize,
    eight_bit_scale,
    expanded,
    is_eight_bit,
    matrix,
    pack,
    quantize,
    stored_bytes,
    take_rows,
    unpack,
)
from slimseek.schema import Array, QuantizedTensor, QuantSpec

BITS = range(2, 9)
SPECS = tuple(
    QuantSpec(bits=bits, granularity=granularity, group_size=3 if granularity == "group" else None, symmetric=symmetric,
              axis=axis)
    for bits, granularity, symmetric, axis in itertools.product(
        (2, 3, 4, 5, 8), ("tensor", "channel", "group"), (True, False), (0, 1)
    )
)  # fmt: skip


def spec(bits: int, granularity: str = "channel", group_size: int | None = None, **more: object) -> QuantSpec:
    return QuantSpec(bits=bits, granularity=granularity, group_size=group_size, **more)  # type: ignore[arg-type]


def floats(*values: object) -> Array:
    return np.array(values, np.float32)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def blocks_of(shape: tuple[int, ...], how: QuantSpec) -> list[tuple[tuple[int, int], list[tuple[int, ...]]]]:
    """Where each scale lies, and the indices of the values that share it, counted one by one."""
    found: dict[tuple[int, int], list[tuple[int, ...]]] = {}
    seen: dict[int, int] = {}
    for index in np.ndindex(*shape):
        channel = 0 if how.granularity == "tensor" else index[how.axis]
        number = seen.get(channel, 0)
        seen[channel] = number + 1
        group = number // how.group_size if how.group_size else 0
        found.setdefault((channel, group), []).append(index)
    return list(found.items())


# ---------------------------------------------------------------- by hand


def test_symmetric_eight_bits_by_hand() -> None:
    """The largest magnitude 127 gives scale 1; a half goes to the even neighbour."""
    tensor = quantize(floats([127, -63.5, 0.4, -127], [12.7, 0.06, -0.04, 3.14]), spec(8))
    np.testing.assert_allclose(tensor.scale, [[1], [0.1]], rtol=1e-6)
    assert tensor.scale.dtype == np.float32
    assert tensor.integers.dtype == np.int8
    assert tensor.zero_point is None
    assert tensor.integers.tolist() == [[127, -64, 0, -127], [127, 1, 0, 31]]
    np.testing.assert_allclose(dequantize(tensor), [[127, -64, 0, -127], [12.7, 0.1, 0, 3.1]], rtol=1e-6)


def test_symmetric_four_and_two_bits_by_hand() -> None:
    four = quantize(floats([7, -3.4, 0.5, -7]), spec(4))
    assert (four.scale.tolist(), four.integers.tolist()) == ([[1]], [[7, -3, 0, -7]])
    two = quantize(floats([2, -0.9, 1.1, -2]), spec(2))
    assert (two.scale.tolist(), two.integers.tolist()) == ([[2]], [[1, 0, 1, -1]])
    assert dequantize(two).tolist() == [[2, 0, 2, -2]]


def test_asymmetric_by_hand() -> None:
    """Two bits are four levels: -1 to 2 in steps of 1 around zero point 1; a range without zero is stretched to it."""
    tensor = quantize(floats([-1, 0, 0.9, 2], [1, 2, 3, 3], [-3, -1, -1, -2]), spec(2, symmetric=False))
    assert tensor.scale.tolist() == [[1], [1], [1]]
    assert tensor.zero_point is not None
    assert tensor.zero_point.dtype == tensor.integers.dtype == np.uint8
    assert tensor.zero_point.tolist() == [[1], [0], [3]]
    assert tensor.integers.tolist() == [[0, 1, 2, 3], [1, 2, 3, 3], [0, 2, 2, 1]]
    assert dequantize(tensor).tolist() == [[-1, 0, 1, 2], [1, 2, 3, 3], [-3, -1, -1, -2]]


def test_asymmetric_eight_bits_by_hand() -> None:
    tensor = quantize(floats([-55, 0, 199.6, 200]), spec(8, symmetric=False))
    assert tensor.zero_point is not None
    assert (tensor.scale.tolist(), tensor.zero_point.tolist()) == ([[1]], [[55]])
    assert tensor.integers.tolist() == [[0, 55, 255, 255]]


def test_granularities_by_hand() -> None:
    """One matrix, four bits: a scale for all, for each row, for each column, and for groups of three in a row."""
    values = floats([1, 2, -7, 14, 0], [70, 35, 0, 7, 3])
    tensor = quantize(values, spec(4, "tensor"))
    assert (tensor.scale.tolist(), tensor.integers.tolist()) == ([[10]], [[0, 0, -1, 1, 0], [7, 4, 0, 1, 0]])
    rows = quantize(values, spec(4))
    assert (rows.scale.tolist(), rows.integers.tolist()) == ([[2], [10]], [[0, 1, -4, 7, 0], [7, 4, 0, 1, 0]])
    columns = quantize(values, spec(4, axis=1))
    np.testing.assert_allclose(columns.scale, floats([70], [35], [7], [14], [3]) / 7, rtol=1e-6)
    assert columns.integers.tolist() == [[0, 0, -7, 7, 0], [7, 7, 0, 4, 7]]
    groups = quantize(values, spec(4, "group", 3))
    np.testing.assert_allclose(groups.scale, [[1, 2], [10, 1]])
    assert groups.integers.tolist() == [[1, 2, -7, 7, 0], [7, 4, 0, 7, 3]]
    np.testing.assert_array_equal(dequantize(groups), [[1, 2, -7, 14, 0], [70, 40, 0, 7, 3]])


def test_groups_along_another_axis_and_of_more_axes_by_hand() -> None:
    """Axis 1 of [2, 2, 2]: channel 0 is 7, 1, 14, 28 in groups of three: 7, 1, 14 and 28."""
    values = floats([[7, 1], [70, 0]], [[14, 28], [7, 0.5]])
    tensor = quantize(values, spec(4, "group", 3, axis=1))
    np.testing.assert_allclose(tensor.scale, [[2, 4], [10, 0.5 / 7]], rtol=1e-3)
    assert tensor.integers.tolist() == [[[4, 0], [7, 0]], [[7, 7], [1, 7]]]
    np.testing.assert_allclose(dequantize(tensor), [[[8, 0], [70, 0]], [[14, 28], [10, 0.5]]], rtol=1e-3)
    assert matrix(tensor).tolist() == [[4, 0, 7, 7], [7, 0, 1, 7]]


def test_a_group_wider_than_the_channel_is_the_channel() -> None:
    values = normal(4, 6)
    wide, channel = quantize(values, spec(4, "group", 64)), quantize(values, spec(4))
    assert wide.scale.shape == (4, 1)
    np.testing.assert_array_equal(wide.integers, channel.integers)
    np.testing.assert_allclose(dequantize(wide), dequantize(channel), rtol=1e-3)


def test_a_vector_has_one_channel_a_value() -> None:
    assert dequantize(quantize(floats(3, -5, 0), spec(4))).tolist() == pytest.approx([3, -5, 0], rel=1e-6)


def test_an_all_zero_channel_stays_zero() -> None:
    for how in SPECS:
        values = normal(3, 4)
        values[1] = 0
        values[:, 2] = 0
        with np.errstate(invalid="raise", divide="raise"):
            back = dequantize(quantize(values, how))
        assert np.isfinite(back).all()
        assert not back[1].any()
        assert not back[:, 2].any()
        assert not dequantize(quantize(np.zeros((2, 3), np.float32), how)).any()


@pytest.mark.parametrize("granularity", ["channel", "group"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("factor", [1e-6, 1e-12, 1e-30])
def test_a_tiny_channel_beside_big_ones_keeps_its_values(granularity: str, symmetric: bool, factor: float) -> None:
    """CASES Q8: a scale that float16 cannot hold would turn the channel to zero."""
    values = normal(3, 32)
    values[1] *= factor
    how = spec(8, granularity, 8 if granularity == "group" else None, symmetric=symmetric)
    back = dequantize(quantize(values, how))
    for row, expected in zip(back, values, strict=True):
        assert np.abs(row - expected).max() <= np.abs(expected).max() / 100


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(bad: float) -> None:
    for how in SPECS:
        values = normal(3, 4)
        values[2, 1] = bad
        with pytest.raises(UsageError, match="NaN or infinite"):
            quantize(values, how)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("values", [np.array([[1e300, 1.0]]), floats([3e38, -3e38])])
def test_values_too_large_for_float32_are_refused_or_stay_finite(values: Array, symmetric: bool) -> None:
    try:
        with np.errstate(all="ignore"):
            back = dequantize(quantize(values, spec(8, symmetric=symmetric)))
    except UsageError:
        return
    assert np.isfinite(back).all()


def test_scales_of_groups_are_float16_only_while_all_are_normal_float16_numbers() -> None:
    """2^-14 is the least normal one; a scale is the largest of its group / 7."""
    ordinary = floats([7, 7, 70, 70])
    assert quantize(ordinary, spec(4, "group", 2)).scale.dtype == np.float16
    for factor in (2.0**-14 * 0.99, 7e4):
        values = ordinary.copy()
        values[0, :2] *= np.float32(factor)
        tensor = quantize(values, spec(4, "group", 2))
        assert tensor.scale.dtype == np.float32, factor
        np.testing.assert_allclose(dequantize(tensor), values, rtol=1e-6)
    zero_beside = quantize(floats([0, 0, 7, 7]), spec(4, "group", 2))
    assert zero_beside.scale.dtype == np.float16
    assert quantize(ordinary, spec(4)).scale.dtype == np.float32


# ---------------------------------------------------------------- properties


@given(
    values=arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=7),
        elements=st.floats(-1000, 1000, width=32, allow_subnormal=False),
    ),
    how=st.sampled_from(SPECS),
)
@settings(max_examples=80, deadline=None)
def test_every_value_goes_to_its_nearest_level_at_most_half_a_step_away(values: Array, how: QuantSpec) -> None:
    """All 2^bits levels of a scale are tried; one scale belongs to exactly the values counted for it."""
    tensor = quantize(values, how)
    back = dequantize(tensor)
    assert back.shape == tensor.shape == values.shape
    top = 2 ** (how.bits - 1) - 1
    levels = np.arange(-top, top + 1) if how.symmetric else np.arange(2**how.bits)
    blocks = blocks_of(values.shape, how)
    assert tensor.scale.size == len(blocks)
    for place, indices in blocks:
        scale = float(tensor.scale[place])
        zero = 0 if tensor.zero_point is None else int(tensor.zero_point[place])
        original = np.array([values[index] for index in indices], np.float64)
        given_back = np.array([back[index] for index in indices], np.float64)
        span = np.abs(original).max() if how.symmetric else max(original.max(), 0) - min(original.min(), 0)
        steps = top if how.symmetric else 2**how.bits - 1
        assert scale == pytest.approx(span / steps, rel=1e-3 if tensor.scale.dtype == np.float16 else 1e-6, abs=1e-37)
        nearest = np.abs(original[:, None] - (levels - zero) * scale).min(1)
        error = np.abs(original - given_back)
        assert (error <= nearest + 1e-4 * scale + 1e-37).all()
        # A float16 scale is up to 2^-11 off, which moves the farthest level by that share of its distance.
        slack = 2**-11 * (steps + 1) if tensor.scale.dtype == np.float16 else 1e-4
        assert (error <= (0.5 + slack) * scale + 1e-37).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_n_bits_give_at_most_two_to_the_n_levels(bits: int, symmetric: bool) -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (1, 20_000))
    tensor = quantize(values, spec(bits, symmetric=symmetric))
    assert len(np.unique(dequantize(tensor))) == (2**bits - 1 if symmetric else 2**bits)
    limits = (-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    assert (tensor.integers.min(), tensor.integers.max()) == limits


@pytest.mark.parametrize("how", [how for how in SPECS if how.granularity == "channel"])
def test_equals_the_rounding_of_torch(how: QuantSpec) -> None:
    values = normal(6, 50, seed=how.bits)
    tensor = quantize(values, how)
    top = 2 ** (how.bits - 1) - 1
    zero = np.zeros(len(tensor.scale)) if tensor.zero_point is None else tensor.zero_point[:, 0]
    reference = torch.fake_quantize_per_channel_affine(
        torch.from_numpy(values), torch.from_numpy(tensor.scale[:, 0]), torch.from_numpy(zero.astype(np.int32)),
        how.axis, *((-top, top) if how.symmetric else (0, 2**how.bits - 1)),
    )  # fmt: skip
    np.testing.assert_allclose(dequantize(tensor), reference.numpy(), atol=1e-6)


def test_quantizing_does_not_change_its_argument() -> None:
    for how in SPECS:
        values = normal(4, 5)
        quantize(values, how)
        np.testing.assert_array_equal(values, normal(4, 5))


def test_dequantize_leaves_integer_buffers_and_widens_half() -> None:
    """CASES E11: position ids are no weights."""
    positions = np.arange(5)
    assert dequantize(positions) is positions
    half = dequantize(np.array([0.1, 2], np.float16))
    assert half.dtype == np.float32
    assert half.tolist() == [0.0999755859375, 2]


# ---------------------------------------------------------------- packing


@given(data=st.data(), bits=st.sampled_from(BITS), signed=st.booleans())
@settings(max_examples=100, deadline=None)
def test_packed_integers_come_back_and_take_exactly_their_bits(data: st.DataObject, bits: int, signed: bool) -> None:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    shape = data.draw(arrays.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=9))
    integers = data.draw(arrays.arrays(np.int8 if signed else np.uint8, shape, elements=st.integers(low, high)))
    packed = pack(integers, bits)
    assert packed.dtype == np.uint8
    assert packed.nbytes == -(-integers.size * bits // 8)
    back = unpack(packed, bits, shape, signed)
    assert back.dtype == integers.dtype
    np.testing.assert_array_equal(back, integers)


def test_packing_by_hand() -> None:
    """Least significant bit first, two's complement; -1 at 3 bits is 111, 1 is 001, 2 is 010, -4 is 100, 3 is 011."""
    signed = np.array([-1, 1, 2, -4, 3], np.int8)
    bits = 0b111 | 0b001 << 3 | 0b010 << 6 | 0b100 << 9 | 0b011 << 12
    assert pack(signed, 3).tolist() == [bits & 255, bits >> 8] == [143, 56]
    assert pack(np.array([1, -1, 7, -8], np.int8), 4).tolist() == [0xF1, 0x87]
    assert pack(np.array([3, 2, 1, 0, 2], np.uint8), 2).tolist() == [0b00011011, 0b10]
    assert pack(np.array([-1, 127, -128], np.int8), 8).tolist() == [255, 127, 128]
    assert pack(np.array([[21, 1], [2, 31]], np.uint8), 5).tolist() == [0b00110101, 0b10001000, 0b1111]


def test_packing_reads_in_the_order_of_the_axes_whatever_lies_in_memory() -> None:
    integers = np.arange(-6, 6, dtype=np.int8).reshape(3, 4)
    for bits in (5, 8):
        np.testing.assert_array_equal(pack(integers.T, bits), pack(integers.T.copy(), bits))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("change", [-1, 1])
def test_packed_bytes_of_another_length_are_refused(bits: int, change: int) -> None:
    packed = pack(np.zeros(24, np.int8), bits)
    wrong = packed[:-1] if change < 0 else np.append(packed, np.uint8(0))
    with pytest.raises(UsageError, match=f"{wrong.size} packed bytes cannot hold 24 integers of {bits} bits"):
        unpack(wrong, bits, (4, 6), signed=True)


@pytest.mark.parametrize("how", SPECS)
def test_stored_bytes_are_what_safetensors_stores(how: QuantSpec, tmp_path: Path) -> None:
    tensor = quantize(normal(7, 11), how)
    parts = {"integers": pack(tensor.integers, how.bits), "scale": tensor.scale}
    if tensor.zero_point is not None:
        parts["zero_point"] = pack(tensor.zero_point, how.bits)
    save_file(parts, tmp_path / "t.safetensors")
    content = (tmp_path / "t.safetensors").read_bytes()
    (header,) = struct.unpack("<Q", content[:8])
    assert stored_bytes(tensor) == len(content) - 8 - header
    offsets = json.loads(content[8 : 8 + header])["integers"]["data_offsets"]
    assert offsets[1] - offsets[0] == -(-77 * how.bits // 8)
    loaded = load_file(tmp_path / "t.safetensors")["integers"]
    np.testing.assert_array_equal(unpack(loaded, how.bits, (7, 11), how.symmetric), tensor.integers)


def test_stored_bytes_of_plain_arrays() -> None:
    assert stored_bytes(np.zeros((3, 5), np.float32)) == 60
    assert stored_bytes(np.zeros((3, 5), np.float16)) == 30
    assert stored_bytes(np.zeros(4, np.int64)) == 32


# ---------------------------------------------------------------- rows, and the eight-bit grid


@pytest.mark.parametrize("how", [how for how in SPECS if not (how.granularity == "group" and how.axis == 1)])
def test_taken_rows_keep_their_values(how: QuantSpec) -> None:
    """Rows repeated, in another order, and left out."""
    tensor = quantize(normal(6, 7), how)
    rows = np.array([5, 0, 2, 2])
    taken = take_rows(tensor, rows)
    assert isinstance(taken, QuantizedTensor)
    assert taken.shape == (4, 7)
    np.testing.assert_array_equal(dequantize(taken), dequantize(tensor)[rows])


@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_across_groups_are_refused_or_keep_their_values(symmetric: bool) -> None:
    """On axis 1 a group runs along the rows: row 5 must not be read with the scale of row 0's group."""
    tensor = quantize(
        floats(*([float(10**row)] * 3 for row in range(6))), spec(4, "group", 2, axis=1, symmetric=symmetric)
    )
    try:
        taken = take_rows(tensor, np.array([0, 5]))
    except UsageError:
        return
    np.testing.assert_array_equal(dequantize(taken), dequantize(tensor)[[0, 5]])


def test_taken_rows_of_a_plain_array() -> None:
    assert take_rows(np.arange(6).reshape(3, 2), np.array([2, 0])).tolist() == [[4, 5], [0, 1]]  # type: ignore[union-attr]


@pytest.mark.parametrize("how", SPECS)
def test_expanded_values_lie_on_an_eight_bit_grid_at_most_half_a_step_away(how: QuantSpec) -> None:
    values = np.abs(normal(5, 9)) + 1
    values[::2, ::2] *= -1
    tensor = quantize(values, how)
    exact = dequantize(tensor)
    if how.bits == 8 and how.granularity != "group":
        assert is_eight_bit(tensor)
        np.testing.assert_array_equal(expanded(tensor), exact)
        return
    assert not is_eight_bit(tensor)
    largest = np.array([np.abs(np.take(exact, number, how.axis)).max() for number in range(exact.shape[how.axis])])
    np.testing.assert_allclose(eight_bit_scale(tensor), largest / 127, rtol=1e-6)
    step = (largest / 127).reshape((-1, 1) if how.axis == 0 else (1, -1))
    assert (np.abs(expanded(tensor) - exact) <= step / 2 * 1.0001).all()
    integers = expanded(tensor) / step
    np.testing.assert_allclose(integers, np.rint(integers), atol=1e-3)
    assert np.abs(integers).max() < 127.01


def test_the_eight_bit_scale_of_a_zero_channel_is_one() -> None:
    tensor = quantize(floats([0, 0], [7, 3.5]), spec(4))
    np.testing.assert_allclose(eight_bit_scale(tensor), [1, 7 / 127], rtol=1e-6)
    assert np.isfinite(expanded(tensor)).all()


def test_expanded_leaves_float_arrays_as_they_are() -> None:
    np.testing.assert_array_equal(expanded(normal(2, 3)), normal(2, 3))
