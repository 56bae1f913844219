"""quantize.mixed: the solver against brute force, sensitivities against sums over real inputs, sizes against disk."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import optimize, sparse

from slimseek import artifact, choose, compress, integers, plugins, recipe
from slimseek.errors import NoEffect, UsageError
from slimseek.evaluate import cosines
from slimseek.methods.quantize import mixed
from slimseek.methods.quantize._allocation import allocate
from slimseek.schema import Array, Model, QuantizedTensor, Samples
from small import BACKENDS, CORPUS, WORDS, tiny_model

TEXTS = [*CORPUS.values(), *WORDS]
HELD_OUT = ["winter near the bridge", "a dog made of stone", "river engine", "the cat and the apple trees run"]
SAMPLES = Samples(calibration=TEXTS, texts=TEXTS)
SENSITIVE = "transformer.encoder.layer.0.intermediate.dense.weight"
BEFORE_IT = "transformer.encoder.layer.0.attention.output.LayerNorm"


def step(**parameters: Any) -> mixed.Mixed:
    return mixed.Mixed(**parameters)


def uniform(model: Model, bits: int, **parameters: Any) -> Model:
    settings = {"granularity": "group", "group_size": 64, "symmetric": False} | parameters
    made: Model = plugins.load("methods", "quantize.weights_int")(bits=bits, **settings).apply(model, SAMPLES)
    return made


def bits_of(model: Model) -> dict[str, int]:
    return {name: value.spec.bits for name, value in model.tensors.items() if isinstance(value, QuantizedTensor)}


def loss(before: Model, after: Model, texts: list[str]) -> float:
    """Mean of 1 - cosine."""
    first, second = (choose.encoder(model, "model", 1).documents(texts) for model in (before, after))
    return float((1 - cosines(first, second)).mean())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def sensitive(model: Model) -> Model:
    """One layer where two inputs are 40 times smaller than the others, and their weights 40 times larger.

    Few bits then have steps as wide as the other weights, although the weight's own signal to noise ratio is fine.
    """
    tensors = dict(model.tensors)
    for name, factor in ((f"{BEFORE_IT}.weight", 1 / 40), (f"{BEFORE_IT}.bias", 1 / 40), (SENSITIVE, 40)):
        changed = np.array(tensors[name])
        changed[..., [3, 17]] *= factor
        tensors[name] = changed
    return dataclasses.replace(model, tensors=tensors)


class TestAllocation:
    @pytest.mark.parametrize("seed", range(60))
    def test_no_choice_that_fits_is_better(self, seed: int) -> None:
        """All of up to 4^6 choices tried, at every kind of tightness, with ties and choices that make no sense."""
        random = np.random.default_rng(seed)
        parts, choices = int(random.integers(1, 7)), int(random.integers(1, 5))
        sizes = random.integers(1, 30, (parts, choices))
        errors = random.integers(0, 9, (parts, choices)) if seed % 2 else random.exponential(1, (parts, choices)) ** 4
        rows = np.arange(parts)
        everything = [np.array(choice) for choice in itertools.product(range(choices), repeat=parts)]
        for most in np.linspace(sizes.min(1).sum(), sizes.max(1).sum() + 3, 7).astype(int).tolist():
            found = allocate(sizes, errors.astype(np.float64), most)
            assert sizes[rows, found].sum() <= most
            best = min(errors[rows, choice].sum() for choice in everything if sizes[rows, choice].sum() <= most)
            assert errors[rows, found].sum() == pytest.approx(best, rel=1e-12)

    def test_by_hand(self) -> None:
        """Ten bytes: 8 + 2 errs by 1 + 3, 2 + 8 by 9 + 0.5, and 5 + 5 by 2 + 1, which is best."""
        sizes, errors = np.array([[2, 5, 8], [2, 5, 8]]), np.array([[9.0, 2.0, 1.0], [3.0, 1.0, 0.5]])
        assert allocate(sizes, errors, 10).tolist() == [1, 1]
        assert allocate(sizes, errors, 9).tolist() == [1, 0]
        assert allocate(sizes, errors, 4).tolist() == [0, 0]
        assert allocate(sizes, errors, 99).tolist() == [2, 2]

    @pytest.mark.parametrize("seed", range(4))
    def test_as_good_as_an_integer_programme(self, seed: int) -> None:
        """80 parts of unlike sizes with four to six choices, against the branch and cut of HiGHS."""
        random = np.random.default_rng(seed)
        parts, bits = 80, np.array([2, 3, 4, 5, 6, 8][: 4 + seed % 3])
        sizes = random.integers(1000, 10**6, (parts, 1)) * bits + random.integers(0, 500, (parts, 1))
        errors = random.exponential(1, (parts, 1)) * 4.0**-bits * random.uniform(0.5, 1.5, (parts, len(bits)))
        most = int(sizes[:, :3].mean(1).sum())
        found = allocate(sizes, errors, most)
        one_each = sparse.kron(sparse.eye(parts), np.ones((1, len(bits))))
        solved = optimize.milp(
            errors.ravel() * 1e3,
            constraints=[
                optimize.LinearConstraint(one_each, 1, 1),
                optimize.LinearConstraint(sizes.ravel() / most, -np.inf, 1),
            ],
            integrality=np.ones(sizes.size),
            bounds=optimize.Bounds(0, 1),
            options={"mip_rel_gap": 1e-9},
        )
        rows = np.arange(parts)
        assert sizes[rows, found].sum() <= most
        assert errors[rows, found].sum() * 1e3 <= solved.fun * (1 + 1e-6)

    def test_nothing_to_lose_takes_the_fewest_bytes(self) -> None:
        """Parts without any error, such as a layer of zeros."""
        assert allocate(np.array([[8, 4, 3], [3, 4, 8]]), np.zeros((2, 3)), 100).tolist() == [2, 0]


class TestSensitivity:
    def test_noise_of_a_linear_layer_is_summed_over_real_inputs(self, model: Model) -> None:
        """The second moment taken from every token that reaches the layer, padding left out."""
        inputs: list[Array] = []
        family, encoder = choose.family(model), choose.encoder(model, "tiny", 1)
        for text in TEXTS:
            family.observe(
                model, [encoder.input([text])], lambda name, x: inputs.append(x) if name == SENSITIVE else None
            )
        squares = np.concatenate(inputs).astype(np.float64) ** 2
        layer = next(layer for layer in model.layers if layer.weight == SENSITIVE)
        tensor = step()._quantized(model, layer, 4)
        values = integers.dequantize(model.tensors[SENSITIVE]).astype(np.float64)
        noise = integers.dequantize(tensor) - values
        expected = np.einsum("tj,ij->", squares, noise**2) / np.einsum("tj,ij->", squares, values**2)
        assert mixed._output_noise(model, SAMPLES)(layer, tensor) == pytest.approx(expected, rel=1e-5)

    def test_rows_of_the_token_table_count_by_their_tokens(self, model: Model) -> None:
        name = model.spec.token_table
        layer = next(layer for layer in model.layers if layer.weight == name)
        values = integers.dequantize(model.tensors[layer.weight]).astype(np.float64)
        counts = dict.fromkeys(range(len(values)), 1)
        for text in TEXTS:
            for token in choose.encoder(model, "tiny", 1).input([text])["input_ids"][0].tolist():
                counts[token] += 1
        tensor = step()._quantized(model, layer, 3)
        noise = integers.dequantize(tensor) - values
        expected = sum(counts[row] * (noise[row] ** 2).sum() for row in counts)
        expected /= sum(counts[row] * (values[row] ** 2).sum() for row in counts)
        assert mixed._output_noise(model, SAMPLES)(layer, tensor) == pytest.approx(expected, rel=1e-5)

    def test_second_moments_of_a_grouped_convolution(self) -> None:
        """Four outputs in two groups of three inputs each; output o of group g meets inputs 3g to 3g + 2."""
        weights = mixed._by_input(np.arange(6.0), (4, 3))
        assert weights.tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5]]
        kernels = np.random.default_rng(0).standard_normal((4, 3, 5, 5))
        np.testing.assert_allclose(mixed._squares(kernels, 0), (kernels**2).sum((2, 3)))
        np.testing.assert_allclose(mixed._squares(kernels[..., 0, 0], 1), (kernels[..., 0, 0] ** 2).T)

    def test_vector_change_is_what_one_layer_alone_costs(self, model: Model) -> None:
        layer = next(layer for layer in model.layers if layer.weight == SENSITIVE)
        tensor = step()._quantized(model, layer, 3)
        other = dataclasses.replace(model, tensors=dict(model.tensors) | {SENSITIVE: tensor})
        expected = loss(model, other, TEXTS)
        assert expected > 1e-5
        assert mixed._vector_change(model, SAMPLES)(layer, tensor) == pytest.approx(expected, rel=1e-3)


class TestStep:
    @pytest.mark.parametrize("measure", ["sqnr", "vectors"])
    @pytest.mark.parametrize("texts", [TEXTS, HELD_OUT])
    def test_a_sensitive_layer_gets_more_and_the_vectors_keep_more(
        self, sensitive: Model, measure: Any, texts: list[str]
    ) -> None:
        """Against four bits everywhere, in no more bytes; and against a choice that sees weights alone."""
        flat = uniform(sensitive, 4)
        size = compress.weight_bytes(flat)
        chosen = step(size=f"{size}B", measure=measure).apply(sensitive, SAMPLES)
        assert compress.weight_bytes(chosen) <= size
        assert bits_of(chosen)[SENSITIVE] == 8
        assert loss(sensitive, chosen, texts) < 0.5 * loss(sensitive, flat, texts)

    @pytest.mark.parametrize("size", [0.15, "17%", "18kB", 0.2, "25 kb"])
    def test_the_size_is_met_in_memory_and_on_disk(self, model: Model, size: Any, tmp_path: Path) -> None:
        """The data of the safetensors file: all of it but the header, whose length its first eight bytes give."""
        most = {0.15: 15072, "17%": 17081, "18kB": 18000, 0.2: 20096, "25 kb": 25000}[size]
        made = step(size=size).apply(model, SAMPLES)
        artifact.write(made, tmp_path)
        content = (tmp_path / artifact.WEIGHTS).read_bytes()
        header = int.from_bytes(content[:8], "little")
        assert len(content) - 8 - header == compress.weight_bytes(made) <= most
        assert sum(integers.stored_bytes(made.tensors[layer.weight]) for layer in made.layers) > 0.9 * (
            most - sum(made.tensors[name].nbytes for name in made.tensors if name not in bits_of(made))  # type: ignore[union-attr]
        ), "what is allowed is used"
        _, read = artifact.read(tmp_path)
        assert bits_of(read) == bits_of(made)
        first, second = (choose.encoder(each, "tiny", 1).documents(TEXTS) for each in (made, read))
        np.testing.assert_array_equal(first, second)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_a_backend_gives_the_same_vectors(self, model: Model, backend: str, tmp_path: Path) -> None:
        made = step(size=0.2, bits=(2, 3, 4, 5, 6, 7, 8)).apply(model, SAMPLES)
        assert len(set(bits_of(made).values())) > 2
        found = plugins.load("backends", backend)()
        found.export(made, tmp_path)
        package = choose.assemble(
            "p", made.spec, made.files, found.open(tmp_path, 1), shipped={}, runtime="", threads=1
        )
        assert cosines(choose.encoder(made, "tiny", 1).documents(TEXTS), package.documents(TEXTS)).min() > 0.999

    def test_one_number_of_bits_is_weights_int(self, model: Model) -> None:
        made, flat = step(size=0.3, bits=(5,)).apply(model, SAMPLES), uniform(model, 5)
        for name, tensor in flat.tensors.items():
            np.testing.assert_array_equal(
                integers.dequantize(made.tensors[name]), integers.dequantize(tensor), err_msg=name
            )

    @pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
    @pytest.mark.parametrize("symmetric", [False, True])
    def test_its_settings_reach_the_integers(self, model: Model, granularity: Any, symmetric: bool) -> None:
        made = step(size=0.3, granularity=granularity, group_size=8, symmetric=symmetric).apply(model, SAMPLES)
        for tensor in made.tensors.values():
            if isinstance(tensor, QuantizedTensor):
                assert (tensor.spec.granularity, tensor.spec.symmetric) == (granularity, symmetric)
                assert tensor.spec.group_size == (8 if granularity == "group" else None)

    def test_notes_count_the_layers_and_predict(self, model: Model) -> None:
        """With one layer left to choose for, the change that is predicted is the one that comes."""
        almost = uniform(model, 8, skip=("layer.1.output.dense",))
        size = compress.weight_bytes(uniform(almost, 4))
        made = step(size=f"{size}B", measure="vectors").apply(almost, SAMPLES)
        counted, predicted = step().notes(almost, made)
        assert counted == "layers: 4 bits for 1"
        assert predicted.startswith("vectors: a summed sensitivity of ")
        assert float(predicted.split()[5]) == pytest.approx(loss(almost, made, TEXTS), rel=0.01)
        notes = step(size=0.17).notes(model, step(size=0.17).apply(model, SAMPLES))
        given = list(bits_of(step(size=0.17).apply(model, SAMPLES)).values())
        assert notes[0] == "layers: " + ", ".join(f"{bits} bits for {given.count(bits)}" for bits in sorted(set(given)))

    def test_a_layer_of_zeros_stays_zero(self, model: Model) -> None:
        zeros = dataclasses.replace(
            model, tensors=dict(model.tensors) | {SENSITIVE: np.zeros_like(model.tensors[SENSITIVE])}
        )
        made = step().apply(zeros, SAMPLES)
        assert bits_of(made)[SENSITIVE] == 3
        assert not integers.dequantize(made.tensors[SENSITIVE]).any()


class TestRefusals:
    def test_too_small_a_size_names_the_smallest(self, model: Model) -> None:
        smallest = compress.weight_bytes(uniform(model, 3))
        with pytest.raises(UsageError, match=f"size 9% is 9,043 bytes, .* still take {smallest:,}; allow at least"):
            step(size="9%").apply(model, SAMPLES)
        with pytest.raises(UsageError, match=f"{smallest:,}"):
            step(size=f"{smallest - 1}B").apply(model, SAMPLES)
        made = step(size=f"{smallest}B").apply(model, SAMPLES)
        assert set(bits_of(made).values()) == {3}

    def test_nothing_to_do(self, model: Model) -> None:
        with pytest.raises(NoEffect, match=r"the weights take 100,480 bytes, within 100,480"):
            step(size=1.0).apply(model, SAMPLES)
        with pytest.raises(NoEffect, match="no layer has float weights"):
            step().apply(uniform(model, 8), SAMPLES)

    def test_no_calibration(self, model: Model) -> None:
        with pytest.raises(UsageError, match="calibration sample is empty"):
            step().apply(model, Samples(calibration=[], texts=[]))

    @pytest.mark.parametrize("everywhere", [False, True])
    def test_an_input_that_is_not_finite(self, model: Model, everywhere: bool) -> None:
        name = f"{BEFORE_IT}.bias"
        bias = np.array(model.tensors[name])
        bias[slice(None) if everywhere else 0] = np.inf
        broken = dataclasses.replace(model, tensors=dict(model.tensors) | {name: bias})
        with pytest.raises(UsageError, match=f"the input of {SENSITIVE} is NaN or infinite"):
            step().apply(broken, SAMPLES)

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"bits": ()}, "bits are []; one or more of 2 to 8"),
            ({"bits": (4, 9)}, "bits are [4, 9]"),
            ({"group_size": 1}, "group_size is 1; 2 or more"),
            ({"size": "10 parsecs"}, "'10 parsecs' is not a size; write 10MB, or a share"),
            ({"size": 12.5}, "12.5 is not a size"),
        ],
    )
    def test_settings_out_of_range(self, parameters: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError) as error:
            step(**parameters)
        assert message in str(error.value)
        text = json.dumps({"version": 1, "steps": [{"quantize.mixed": parameters}]})
        with pytest.raises(UsageError) as again:
            recipe.load(recipe.parse(text))
        assert str(again.value) == str(error.value)


def test_sizes_by_hand() -> None:
    """Decimal units; a share of the whole without a unit or with a per cent sign."""
    for text, wanted in {
        "10MB": 10_000_000, "1.5 kB": 1500, "2gb": 2_000_000_000, "700B": 700, "12%": 120, "0.12": 120, 0.12: 120,
        1: 1000, "1e3 B": 1000, 1e-2: 10, "100 %": 1000,
    }.items():  # fmt: skip
        assert recipe.byte_size(text, 1000) == wanted, text
    for text in (
        "",
        "MB",
        "10",
        1.5,
        0,
        -0.5,
        "-3MB",
        "120%",
        "1.2.3MB",
        "nan",
        "inf",
        "10MiB",
        float("nan"),
        "1e999B",
    ):
        with pytest.raises(UsageError, match="is not a size; write 10MB"):
            recipe.byte_size(text, 1000)


def test_a_layer_that_shares_its_weight_is_counted_once(model: Model) -> None:
    """Two layers of one tensor, as tied weights are: one choice and one count of bytes."""
    twin = next(layer for layer in model.layers if layer.weight == SENSITIVE)
    tied = dataclasses.replace(model, layers=(*model.layers, twin))
    assert bits_of(step().apply(tied, SAMPLES)) == bits_of(step().apply(model, SAMPLES))
