"""Vectors trained by labels: the loss, random views, pictures that find their kind, and what is refused."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from slimseek import artifact, choose, data, plugins, similar
from slimseek.errors import UsageError
from slimseek.inputs import augmentation
from slimseek.preprocess import PicturePreprocess
from slimseek.training import finetune, tasks, train
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
    settings = Settings(views=12, metric="map_r", training=QUICK)
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
    settings = Settings(views=SIDE, training=QUICK)
    assert tasks.fitting(model, found, settings) == "normalised_softmax"
    assert all("train-" in found.queries[name] for name in tasks.trainable(found, splits))
    task = tasks.task(model, found, splits, settings, 1)
    (first, labels), (second, _) = task.examples.train[0], task.examples.train[1]
    assert first["pixels"].shape == (12, 3, SIDE, SIDE)
    assert labels.shape == (12,)
    np.testing.assert_array_equal(task.examples.train[0][0]["pixels"], first["pixels"])
    assert not np.array_equal(first["pixels"], second["pixels"])
    plain = tasks.task(model, found, splits, msgspec.structs.replace(settings, views=0), 1)
    read = choose.encoder(model, "network", 1).input
    chosen = plain.examples.train[0][0]["pixels"]
    own = read([found.queries[name] for name in tasks.trainable(found, splits)])["pixels"]
    assert all((own == row).all((1, 2, 3)).any() for row in chosen), "without views pictures are as they are served"


def test_what_does_not_fit_is_refused(shop: Path, network: Path, tmp_path: Path) -> None:
    found = data.load(str(shop))
    model = choose.model(network)
    with pytest.raises(UsageError, match="views is -1; a side in pixels, or 0, is allowed"):
        Settings(views=-1)
    with pytest.raises(UsageError, match="loss is contrastive, and shop has labels; cross_entropy, normalised_softmax"):
        tasks.fitting(model, found, Settings(loss="contrastive"))
    tiny_bert(tmp_path / "tiny")
    with pytest.raises(UsageError, match="views is 8, and this model or collection has other items than labelled pic"):
        tasks.fitting(choose.model(tmp_path / "tiny"), found, Settings(views=8))
    classifier = dataclasses.replace(model, spec=msgspec.structs.replace(model.spec, output="class_logits"))
    with pytest.raises(UsageError, match="the model is a classifier, and the loss normalised_softmax is for vectors"):
        tasks.fitting(classifier, found, Settings(loss="normalised_softmax"))
