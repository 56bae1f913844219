"""Recipes: what comes with slimseek reads and writes itself; what is wrong is one line with the value and the range."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from slimseek import plugins, recipe
from slimseek.errors import UsageError
from slimseek.methods.quantize.weights_int import WeightsInt
from slimseek.schema import Gates, Recipe, RecipeStep

INT4 = """
version: 1
steps:
  - simplify.vocabulary:
  - quantize.weights_int: {bits: 4, granularity: group, group_size: 32}
gates: {metric: mrr@10, max_loss: 0.02}
targets: [openvino]
seed: 7
"""


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert text
    assert "\n" not in text
    return text


def with_steps(*steps: str) -> str:
    return "version: 1\nsteps:\n" + "".join(f"  - {step}\n" for step in steps)


def load_text(text: str, folder: Path) -> Recipe:
    (folder / "r.yaml").write_text(text, "utf-8")
    return recipe.load(folder / "r.yaml")


# ---------------------------------------------------------------- what is right


@pytest.mark.parametrize("name", recipe.shorthands())
def test_every_shorthand_is_read_written_and_read_back_equal(name: str, tmp_path: Path) -> None:
    loaded = recipe.load(name)
    assert loaded.name == name
    assert recipe.text_of(name).startswith("# "), "its first line says what it does"
    assert loaded == recipe.parse(recipe.text_of(name), name)
    assert recipe.parse(recipe.dump(loaded), name) == loaded
    path = tmp_path / f"{name}.yaml"
    path.write_text(recipe.dump(loaded))
    assert recipe.load(path) == loaded
    assert recipe.load(loaded) == loaded
    for step in loaded.steps:
        built = recipe.build(step)
        assert {key: getattr(built, key) for key in step.parameters} == step.parameters


def test_the_shorthands_are_the_files_of_the_folder() -> None:
    folder = Path(recipe.__file__).parent / "recipes"
    assert set(recipe.shorthands()) == {path.stem for path in folder.iterdir()}
    assert {"int8", "int4", "fp16"} <= set(recipe.shorthands())


def test_a_recipe_is_read_field_by_field() -> None:
    assert recipe.parse(INT4, "mine") == Recipe(
        steps=(
            RecipeStep(method="simplify.vocabulary", parameters={}),
            RecipeStep(method="quantize.weights_int", parameters={"bits": 4, "granularity": "group", "group_size": 32}),
        ),
        gates=Gates(metric="mrr@10", max_loss=0.02),
        targets=("openvino",),
        seed=7,
        name="mine",
    )


def test_fields_left_out_have_their_defaults() -> None:
    read = recipe.parse(with_steps("quantize.float: {}"))
    assert (read.gates, read.targets, read.seed) == (Gates(metric="ndcg@10", max_loss=0.01), ("onnxruntime",), 0)


def test_json_and_files_of_any_name_are_read_too(tmp_path: Path) -> None:
    document = yaml.safe_load(INT4)
    for name, text in (("r.json", json.dumps(document)), ("r.yml", INT4), ("no suffix", INT4)):
        (tmp_path / name).write_text(text)
        read = recipe.load(str(tmp_path / name))
        assert read.steps == recipe.parse(INT4).steps
        assert read.name == Path(name).stem


def test_a_built_step_is_the_method_with_its_parameters() -> None:
    built = recipe.build(RecipeStep(method="quantize.weights_int", parameters={"bits": 3, "layers": ["embedding"]}))
    assert built == WeightsInt(bits=3, layers=("embedding",))


steps_of_any_kind = st.lists(
    st.builds(
        RecipeStep,
        method=st.sampled_from(plugins.names("methods")),
        parameters=st.dictionaries(
            st.text(min_size=1, max_size=8),
            st.one_of(st.integers(), st.floats(allow_nan=False), st.booleans(), st.text(max_size=8), st.none()),
            max_size=3,
        ),
    ),
    min_size=1,
    max_size=4,
)


@given(
    steps=steps_of_any_kind,
    max_loss=st.floats(0, 1, exclude_max=True),
    targets=st.lists(st.text(max_size=5), max_size=3),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None)
def test_whatever_is_written_is_read_back_equal(
    steps: list[RecipeStep], max_loss: float, targets: list[str], seed: int
) -> None:
    """Also a parameter called ``on`` or ``1``, a text that looks like a number, an exponent, a line break."""
    given_recipe = Recipe(
        steps=tuple(steps), gates=Gates(metric="map", max_loss=max_loss), targets=tuple(targets), seed=seed
    )
    assert recipe.parse(recipe.dump(given_recipe)) == given_recipe


# ---------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version: 2\nsteps: [{quantize.float: {}}]", ("version 2", "version 1")),
        ("version: 0\nsteps: [{quantize.float: {}}]", ("version 0", "version 1")),
        ("steps: [{quantize.float: {}}]", ("version",)),
        ("version: one\nsteps: [{quantize.float: {}}]", ("version",)),
        ("version: 1\nsteps: []", ("no steps", "quantize.weights_int")),
        ("version: 1", ("steps",)),
        ("version: 1\nsteps: quantize.float", ("steps",)),
        ("version: 1\nsteps: [quantize.float]", ("steps[0]",)),
        (with_steps("{quantize.float: {}, quantize.weights_int: {}}"), ("step 1", "quantize.float", "one method")),
        (with_steps("quantize.float: {}", "{}"), ("step 2", "one method")),
        (with_steps("quantize.float: 16"), ("steps[0]",)),
        (with_steps("1: {}"), ("steps[0]",)),
        (with_steps("quantize.float: {}") + "colour: red", ("colour",)),
        (with_steps("quantize.float: {}") + "gates: {max_loss: 1.5}", ("1.5", "from 0 to below 1")),
        (with_steps("quantize.float: {}") + "gates: {max_loss: 1}", ("max_loss 1", "from 0 to below 1")),
        (with_steps("quantize.float: {}") + "gates: {max_loss: -0.1}", ("-0.1", "from 0 to below 1")),
        (with_steps("quantize.float: {}") + "gates: {max_loss: .nan}", ("nan", "from 0 to below 1")),
        (with_steps("quantize.float: {}") + "gates: {max_loss: 1%}", ("max_loss",)),
        (with_steps("quantize.float: {}") + "gates: {metrik: map}", ("metrik",)),
        (with_steps("quantize.float: {}") + "targets: openvino", ("targets",)),
        (with_steps("quantize.float: {}") + "seed: 1.5", ("seed",)),
        ("", ("object",)),
        ("just a text", ("object",)),
        ("version: 1\nsteps: [", ("line",)),
        ("version: 1\n\tsteps: []", ("line",)),
        ("version: !!python/object/apply:os.system ['true']\nsteps: []", ("python/object",)),
        ("a: &a [*a]", ("recipe",)),
    ],
)  # fmt: skip
def test_a_wrong_recipe_gives_one_line(text: str, words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        load_text(text, tmp_path)
    assert one_line(error).startswith("recipe r: ")
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("bits", [1, 9, 0, -4, 32])
def test_bits_out_of_range_name_the_value_and_the_range(bits: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"bits is {bits}; 2 to 8 are allowed") as error:
        load_text(with_steps(f"quantize.weights_int: {{bits: {bits}}}"), tmp_path)
    assert one_line(error).startswith("quantize.weights_int")


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ("{bits: four}", ("bits", "four")),
        ("{bits: 4.5}", ("bits", "4.5")),
        ("{bits: true}", ("bits", "true")),
        ("{granularity: row}", ("granularity", "row", "tensor", "channel", "group")),
        ("{granularity: group, group_size: 1}", ("group_size is 1", "2 or more")),
        ("{symmetric: maybe}", ("symmetric", "maybe")),
        ("{layers: [attention]}", ("layers", "attention", "linear", "embedding", "convolution")),
    ],
)
def test_a_wrong_value_names_itself_and_what_is_allowed(
    parameters: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as error:
        load_text(with_steps(f"quantize.weights_int: {parameters}"), tmp_path)
    assert one_line(error).startswith("quantize.weights_int")
    for word in words:
        assert word in str(error.value).lower()


def test_an_unknown_parameter_names_itself_and_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        load_text(with_steps("quantize.weights_int: {width: 4}"), tmp_path)
    assert one_line(error).startswith("quantize.weights_int")
    for word in ("width", "bits", "granularity", "group_size"):
        assert word in str(error.value)


@pytest.mark.parametrize("method", ["quantize.weigths_int", "quantize", "weights_int", "", "quantize._ranges", "../x"])
def test_an_unknown_method_names_itself_and_those_there_are(method: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        load_text(with_steps(f'"{method}": {{}}'), tmp_path)
    text = one_line(error)
    assert repr(method) in text
    for name in plugins.names("methods"):
        assert name in text


def test_every_step_is_checked_not_only_the_first(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="bits is 9"):
        load_text(with_steps("quantize.float: {}", "quantize.weights_int: {bits: 9}"), tmp_path)
    with pytest.raises(UsageError, match="bits is 9"):
        recipe.load(Recipe(steps=(RecipeStep(method="quantize.weights_int", parameters={"bits": 9}),)))


def test_an_unknown_shorthand_names_itself_and_those_there_are() -> None:
    for read in (recipe.load, recipe.text_of):
        with pytest.raises(UsageError) as error:
            read("int5")
        text = one_line(error)
        assert "'int5'" in text
        for name in recipe.shorthands():
            assert name in text


def test_a_file_that_cannot_be_read_gives_one_line(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x80")
    for name in ("none.yaml", "none.json", "folder.yaml", "bytes.yaml"):
        with pytest.raises(UsageError, match="cannot read the recipe") as error:
            recipe.load(tmp_path / name)
        assert str(tmp_path / name) in one_line(error)


# ---------------------------------------------------------------- gates from the command line


@pytest.mark.parametrize(
    ("text", "value"), [("1%", 0.01), ("0.01", 0.01), ("0", 0.0), ("0%", 0.0), ("99.5%", 0.995), ("2.5 %", 0.025)]
)
def test_a_share_is_read(text: str, value: float) -> None:
    assert recipe.share(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "%", "one", "1", "100%", "-1%", "150%", "nan", "inf%", "1%%", "0,01"])
def test_what_is_no_share_names_itself_and_the_range(text: str) -> None:
    with pytest.raises(UsageError, match="from 0 to below 1") as error:
        recipe.share(text)
    assert repr(text) in one_line(error)


def test_the_command_line_overrides_gates_and_seed_and_nothing_else() -> None:
    read = recipe.parse(INT4)
    assert recipe.with_options(read) == read
    changed = recipe.with_options(read, metric="map", max_loss="3%", seed=5)
    assert changed.gates == Gates(metric="map", max_loss=0.03)
    assert changed.seed == 5
    assert recipe.with_options(read, student="minilm").student == "minilm"
    assert (changed.steps, changed.targets, changed.name) == (read.steps, read.targets, read.name)
    assert read.gates == Gates(metric="mrr@10", max_loss=0.02)
    assert recipe.with_options(read, max_loss="0").gates == Gates(metric="mrr@10", max_loss=0.0)
    with pytest.raises(UsageError, match="'2'"):
        recipe.with_options(read, max_loss="2")


def test_a_recipe_names_the_student_that_its_steps_begin_with() -> None:
    read = recipe.parse("student: minilm\n" + INT4)
    assert read.student == "minilm"
    assert recipe.parse(recipe.dump(read), name=read.name) == read
    assert not recipe.parse(INT4).student
    assert "student" not in recipe.dump(recipe.parse(INT4))
