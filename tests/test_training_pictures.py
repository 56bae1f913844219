"""Pictures in training, by labels and by a teacher: random views, pictures that find their kind, what is refused."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from slimseek import artifact, choose, data, evaluate, plugins, similar
from slimseek.errors import UsageError
from slimseek.inputs import augmentation
from slimseek.inputs.reader import reader
from slimseek.preprocess import PicturePreprocess
from slimseek.schema import Array, Model, Samples
from slimseek.training import examples, finetune, targets, tasks, train
from slimseek.training.settings import Settings
from slimseek.training.train import Training
from small import tiny_bert

Image = pytest.importorskip("PIL.Image")
SIDE = 16
COLOURS = ((200, 60, 60), (60, 200, 60), (60, 60, 200))
QUICK = Training(steps=150, batch_size=12, learning_rate=5e-3)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three goods, told apart by their stripes' width, whatever their colour."""
    folder = tmp_path_factory.mktemp("shop") / "shop"
    (folder / "img").mkdir(parents=True)
    generator = np.random.default_rng(0)
    rows = []
    for number in range(90):
        kind, split = number % 3, ("train", "train", "train", "val", "test")[number // 3 % 5]
        down = np.arange(24)[:, None]
        wave = np.sin(down * (0.4, 1.0, 2.0)[kind] + generator.uniform(0, 6))[..., None]
        colour = np.array(COLOURS[generator.integers(3)])
        pixels = np.clip(colour * (0.6 + 0.4 * wave) + generator.normal(0, 8, (24, 24, 3)), 0, 255)
        file = f"{split}-{number}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "img" / file)
        rows.append({"file": file, "class": f"good-{kind}", "split": split})
    with (folder / "labels.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["file", "class", "split"])
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two convolutions and a mean, random, for pictures of any size."""
    torch = plugins.require("torch")
    nn = torch.nn
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 12, 5), nn.ReLU(), nn.Conv2d(12, 16, 1), nn.ReLU(),
                           nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()  # fmt: skip
    folder = tmp_path_factory.mktemp("network") / "network"
    folder.mkdir()
    torch.onnx.export(module, (torch.zeros(2, 3, SIDE, SIDE),), folder / "model.onnx", dynamo=False,
                      input_names=["pixels"], output_names=["features"], dynamic_axes={"pixels": {0: "N"}},
                      opset_version=17)  # fmt: skip
    settings = {"size": {"height": SIDE, "width": SIDE}, "resample": 3, "rescale_factor": 1 / 255,
                "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_resize": True, "do_rescale": True,
                "do_normalize": True}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_a_loss_by_centres_refuses_numbers_out_of_range() -> None:
    for wrong in ({"scale": 0.0}, {"smoothing": 1.0}):
        with pytest.raises(UsageError, match="normalised_softmax"):
            plugins.load("losses", "normalised_softmax")(**wrong)


def test_a_view_hangs_on_its_seed_alone_and_shows_a_third_of_the_picture_or_more(monkeypatch: Any) -> None:
    """Red is the column and green the row, so that a view tells which part it shows."""
    monkeypatch.setattr(augmentation, "LIGHT", 0.0)
    across, down = np.meshgrid(np.arange(200), np.arange(100))
    picture = Image.fromarray(np.stack([across, down, np.zeros_like(down)], 2).astype(np.uint8))
    how = PicturePreprocess(height=32, width=64, resample="nearest")
    shares, mirrored = [], 0
    for seed in range(200):
        seen = np.asarray(augmentation.view(picture, how, np.random.default_rng(seed))).astype(int)
        again = np.asarray(augmentation.view(picture, how, np.random.default_rng(seed)))
        assert seen.shape == (32, 64, 3)
        np.testing.assert_array_equal(seen, again)
        wide, high = np.ptp(seen[..., 0]) * 64 / 63, np.ptp(seen[..., 1]) * 32 / 31
        shares.append(wide * high / (200 * 100))
        assert 2 / 1.5 < wide / high < 2 * 1.5
        mirrored += int(seen[0, 0, 0] > seen[0, -1, 0])
        assert seen[0, 0, 1] <= seen[-1, 0, 1], "never upside down"
    assert 0.3 < min(shares) < 0.45
    assert 0.85 < max(shares) < 1.05
    assert 70 < mirrored < 130


def test_light_changes_by_three_tenths() -> None:
    """Of a grey picture contrast and saturation change nothing, and brightness everything alike."""
    picture = Image.new("RGB", (40, 40), (100, 100, 100))
    how = PicturePreprocess(height=8, width=8)
    seen = [np.asarray(augmentation.view(picture, how, np.random.default_rng(seed))) for seed in range(60)]
    assert all(len(np.unique(one)) == 1 for one in seen)
    assert 69 <= min(one.mean() for one in seen) < 76
    assert 124 < max(one.mean() for one in seen) <= 131


def test_pictures_learn_to_find_their_kind_and_a_killed_run_goes_on(
    shop: Path, network: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Views of 12 pixels train a network of 16; the centres do not stay in it."""
    settings = Settings(metric="map_r", training=msgspec.structs.replace(QUICK, views=12))
    found = finetune.finetune(network, shop, tmp_path / "whole", settings, threads=1)
    assert (found.loss, found.items, found.collection) == ("normalised_softmax", 54, "shop, dev")
    assert found.after.value > found.before.value + 0.1
    trained = artifact.read(tmp_path / "whole")[1]
    model = choose.model(network)
    assert trained.tensors.keys() == model.tensors.keys()
    assert trained.spec == model.spec
    steps = 0
    whole = train._step_

    def killed(*arguments: Any) -> None:
        nonlocal steps
        steps += 1
        if steps > 110:
            raise KeyboardInterrupt
        whole(*arguments)

    monkeypatch.setattr(train, "_step_", killed)
    with pytest.raises(KeyboardInterrupt):
        finetune.finetune(network, shop, tmp_path / "again", settings, threads=1)
    monkeypatch.setattr(train, "_step_", whole)
    finetune.finetune(network, shop, tmp_path / "again", settings, threads=1)
    again = artifact.read(tmp_path / "again")[1]
    for name, tensor in trained.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], tensor)


def test_no_picture_of_dev_or_test_is_trained_on_and_views_differ_from_batch_to_batch(
    shop: Path, network: Path
) -> None:
    model, found = choose.model(network), data.load(str(shop))
    splits = data.split(similar.similar(found))
    settings = Settings(training=msgspec.structs.replace(QUICK, views=SIDE))
    assert tasks.fitting(model, found, settings) == "normalised_softmax"
    assert all("train-" in found.queries[name] for name in tasks.trainable(found, splits))
    task = tasks.task(model, found, splits, settings, 1)
    (first, labels), (second, _) = task.examples.train[0], task.examples.train[1]
    assert first["pixels"].shape == (12, 3, SIDE, SIDE)
    assert labels.shape == (12,)
    np.testing.assert_array_equal(task.examples.train[0][0]["pixels"], first["pixels"])
    assert not np.array_equal(first["pixels"], second["pixels"])
    plain = tasks.task(model, found, splits, Settings(training=QUICK), 1)
    read = choose.encoder(model, "network", 1).input
    chosen = plain.examples.train[0][0]["pixels"]
    own = read([found.queries[name] for name in tasks.trainable(found, splits)])["pixels"]
    assert all((own == row).all((1, 2, 3)).any() for row in chosen), "without views pictures are as they are served"


def test_what_does_not_fit_is_refused(shop: Path, network: Path, tmp_path: Path) -> None:
    found = data.load(str(shop))
    model = choose.model(network)
    with pytest.raises(UsageError, match="views is -1; a side in pixels, or 0, is allowed"):
        Training(views=-1)
    with pytest.raises(UsageError, match="loss is contrastive, and shop has labels; cross_entropy, normalised_softmax"):
        tasks.fitting(model, found, Settings(loss="contrastive"))
    tiny_bert(tmp_path / "tiny")
    with pytest.raises(UsageError, match="views is 8, and this model or collection has other items than labelled pic"):
        tasks.fitting(choose.model(tmp_path / "tiny"), found, Settings(training=Training(views=8)))
    classifier = dataclasses.replace(model, spec=msgspec.structs.replace(model.spec, output="class_logits"))
    with pytest.raises(UsageError, match="the model is a classifier, and the loss normalised_softmax is for vectors"):
        tasks.fitting(classifier, found, Settings(loss="normalised_softmax"))


# ---------------------------------------------------------------- by a teacher


@pytest.fixture(scope="module")
def worn(network: Path) -> Model:
    """The network, its first layer's weights half noise."""
    model = choose.model(network)
    name = model.layers[0].weight
    weight = np.asarray(model.tensors[name])
    noise = np.random.default_rng(3).normal(0, float(weight.std()), weight.shape).astype(np.float32)
    return dataclasses.replace(model, tensors=dict(model.tensors) | {name: weight + noise})


def shown(shop: Path, split: str) -> list[str]:
    return [str(path) for path in sorted((shop / "img").glob(f"{split}-*"))]


def apart(model: Model, other: Model, items: list[str]) -> float:
    """Mean 1 - cosine."""
    one, two = (choose.encoder(each, "network", 1).documents(items) for each in (model, other))
    return float((1 - evaluate.cosines(one, two)).mean())


def test_views_are_blended_with_the_next_one_by_shares_of_their_own(shop: Path, network: Path) -> None:
    model, items = choose.model(network), shown(shop, "train")[:5]
    read: Any = reader(model.spec, model.files)
    rows = read.rows(items)
    plain = examples.viewed(read, rows, SIDE, (7, 2))["pixels"]
    mixed = examples.viewed(read, rows, SIDE, (7, 2), mixed=True)["pixels"]
    shares = []
    for place, blended in enumerate(mixed):
        own, following = plain[place], plain[(place + 1) % 5]
        share = float(((blended - following) * (own - following)).sum() / ((own - following) ** 2).sum())
        np.testing.assert_allclose(blended, share * own + (1 - share) * following, atol=1e-5)
        shares.append(share)
    assert all(0 <= share <= 1 for share in shares)
    assert len({round(share, 4) for share in shares}) == 5
    assert plain.dtype == mixed.dtype == np.float32


def test_a_teacher_is_asked_of_the_very_view_that_its_student_sees(shop: Path, network: Path, worn: Model) -> None:
    """What ONNX Runtime gives for the batch is what the student shall give; whole pictures are held out."""
    teacher, items = choose.model(network), shown(shop, "train")
    settings = Training(steps=3, batch_size=6, views=SIDE)
    student = choose.family(worn).trainable(worn)
    loss = plugins.load("losses", "cosine")()
    columns = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))[0].astype(np.float32)
    learner, found, of_both = targets.taught(student, worn, teacher, items, settings, loss, columns=columns)
    torch = plugins.require("torch")
    for inputs, target in (found.train[0], found.train[1], found.held_out[0]):
        given = learner(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        expected = choose.family(teacher).run(teacher, 1)(inputs) @ columns
        np.testing.assert_allclose(given["teacher"], expected, atol=1e-5)
        own = choose.family(worn).run(worn, 1)(inputs)
        np.testing.assert_allclose(given["student"].detach(), own, atol=1e-5)
        by_hand = 1 - (own * expected).sum(1) / np.linalg.norm(own, axis=1) / np.linalg.norm(expected, axis=1)
        np.testing.assert_allclose(of_both(given, torch.from_numpy(target), 0.0).detach(), by_hand, atol=1e-5)
    assert not any("teacher" in name for name, _ in learner.named_parameters()), "it is neither trained nor saved"
    whole = choose.encoder(worn, "network", 1).input(items)["pixels"]
    assert all((whole == row).all((1, 2, 3)).any() for row in found.held_out[0][0]["pixels"])
    assert not any((whole == row).all((1, 2, 3)).any() for row in found.train[0][0]["pixels"])


@pytest.mark.parametrize("projection", ["none", "pca"])
def test_a_student_learns_from_views_what_holds_for_pictures_it_never_saw(
    shop: Path, network: Path, worn: Model, tmp_path: Path, projection: str
) -> None:
    teacher = choose.model(network)
    step = plugins.load("methods", "distil.embedding")(
        views=SIDE, projection=projection, steps=100, batch_size=12, learning_rate=3e-3, cache=str(tmp_path)
    )
    learned = step.apply(worn, Samples(calibration=(), texts=shown(shop, "train"), original=teacher))
    test = shown(shop, "test")
    before, after = (products(teacher, one, test) for one in (worn, learned))
    assert after < before / 3


def products(model: Model, other: Model, items: list[str]) -> float:
    """Mean absolute difference of inner products, which turning does not change."""
    one, two = (choose.encoder(each, "network", 1).documents(items) for each in (model, other))
    return float(np.abs(one @ one.T - two @ two.T).mean())


def test_pruned_networks_recover_by_views(shop: Path, network: Path) -> None:
    model = choose.model(network)
    samples = Samples(calibration=shown(shop, "train"), texts=shown(shop, "train"), original=model)

    def pruned(recovery: Training | None) -> Model:
        step = plugins.load("methods", "prune.channels")(amount=0.3, multiple_of=1, recovery=recovery)
        found: Model = step.apply(model, samples)
        return found

    without, recovered = pruned(None), pruned(Training(steps=60, batch_size=12, learning_rate=3e-3, views=SIDE))
    test = shown(shop, "test")
    assert apart(model, recovered, test) < apart(model, without, test) / 2


def test_rounding_learns_from_the_original_what_was_lost_before(shop: Path, network: Path, worn: Model) -> None:
    original, test = choose.model(network), shown(shop, "test")
    samples = Samples(calibration=(), texts=shown(shop, "train"), original=original)

    def rounded(**chosen: Any) -> Model:
        step = plugins.load("methods", "quantize.aware_training")(
            bits=4, granularity="channel", steps=100, batch_size=12, learning_rate=3e-3, views=SIDE, **chosen
        )
        found: Model = step.apply(worn, samples)
        return found

    itself, taught = rounded(), rounded(teacher="original")
    assert apart(worn, itself, test) < apart(worn, taught, test)
    assert apart(original, taught, test) < apart(original, itself, test) / 2
    assert apart(original, taught, test) < apart(original, worn, test)


def test_heavy_batches_are_made_by_processes_and_are_the_same(shop: Path, network: Path, tmp_path: Path) -> None:
    """Each comes from a process that is not this one; what it raises is raised here."""
    model, items = choose.model(network), shown(shop, "train")
    found = targets.examples(model, items, targets.nothing, Training(steps=7, batch_size=4, views=SIDE)).train
    alone = list(examples.ahead(found, 2, 1))
    together = list(examples.ahead(found, 2, 3))
    assert len(alone) == len(together) == 5
    for (one, _), (other, _) in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one["pixels"], other["pixels"])

    def where(number: int) -> tuple[dict[str, Array], Array]:
        if number == 4:
            raise UsageError("the fifth is broken")
        return {"process": np.array([os.getpid()])}, np.zeros(1)

    made = examples.ahead(examples.Lazy(4, where, heavy=True), 0, 3)
    assert all(batch["process"][0] != os.getpid() for batch, _ in made)
    with pytest.raises(UsageError, match="the fifth is broken"):
        list(examples.ahead(examples.Lazy(5, where, heavy=True), 0, 3))
    assert all(batch["process"][0] == os.getpid() for batch, _ in examples.ahead(examples.Lazy(4, where), 0, 3))


def test_views_of_what_is_no_picture_or_by_another_teacher_are_refused(
    shop: Path, network: Path, worn: Model, tmp_path: Path
) -> None:
    distil = plugins.load("methods", "distil.embedding")
    aware = plugins.load("methods", "quantize.aware_training")
    with pytest.raises(UsageError, match=r"distil.embedding: views is -3; a side in pixels, or 0, is allowed"):
        distil(views=-3)
    with pytest.raises(UsageError, match=r"distil.embedding: views is 8, and projection is learned; none or pca is al"):
        distil(views=8, projection="learned")
    tiny_bert(tmp_path / "tiny")
    text = choose.model(tmp_path / "tiny")
    with pytest.raises(UsageError, match="views is 8, and the items of this model are no pictures; 0 is allowed"):
        aware(views=8).apply(text, Samples(calibration=(), texts=["a b", "c d", "e f", "g h"]))
    pictures = Samples(calibration=(), texts=shown(shop, "train"))
    with pytest.raises(UsageError, match="teacher is original, and none is given"):
        aware(teacher="original").apply(worn, pictures)
    with pytest.raises(UsageError, match="the model's vectors have 16 elements, its original's 32; teacher itself is"):
        aware(teacher="original").apply(worn, dataclasses.replace(pictures, original=text))
    other = choose.model(network)
    assert other.spec.picture
    paler = msgspec.structs.replace(other.spec.picture, mean=(0.4, 0.4, 0.4))
    other = dataclasses.replace(other, spec=msgspec.structs.replace(other.spec, picture=paler))
    with pytest.raises(UsageError, match="the teacher takes pictures of other numbers than the model"):
        distil(views=8).apply(worn, dataclasses.replace(pictures, original=other))
