"""Makes the graphs of this folder: tiny networks with random or synthetic weights, each converted by the converter
that users of its framework take.

Each framework wants an environment of its own (CPython 3.11); the versions are those of the files here:

    python -m venv a && a/bin/pip install scikit-learn==1.9.1 skl2onnx==1.20.0
    a/bin/python make.py sklearn

    python -m venv b && b/bin/pip install tensorflow-cpu==2.21.0 tf2onnx==1.17.0
    b/bin/python make.py keras

    python -m venv c && c/bin/pip install paddlepaddle==3.3.1 paddle2onnx==2.1.0 packaging==26.4
    c/bin/python make.py paddle

``NAME.onnx`` is the graph. ``NAME.npz`` holds items by input name (the batch comes first) and, as ``expected``, what
the framework itself gives for them, before any conversion. No data of others is in them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ITEMS = 8


def write(name: str, graph: bytes, expected: np.ndarray, **items: np.ndarray) -> None:
    (HERE / f"{name}.onnx").write_bytes(graph)
    np.savez_compressed(HERE / f"{name}.npz", expected=expected, **items)
    print(name, len(graph))


def sklearn() -> None:
    """Classifiers whose probabilities end in a ZipMap, as is the default; a PCA as an embedding; a regression."""
    from skl2onnx import to_onnx
    from sklearn.datasets import make_classification
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler, Normalizer, StandardScaler

    random = np.random.default_rng(0)
    values, labels = make_classification(600, 32, n_informative=16, n_classes=5, random_state=0)
    values = values.astype(np.float32)
    classifier = make_pipeline(
        StandardScaler(), PCA(20, random_state=0), MLPClassifier((48, 24), max_iter=60, random_state=0)
    ).fit(values, labels)
    graph = to_onnx(classifier, values[:1], target_opset=17).SerializeToString()
    write("sklearn_mlp", graph, classifier.predict_proba(values[:ITEMS]).astype(np.float32), X=values[:ITEMS])
    embedding = make_pipeline(StandardScaler(), PCA(24, random_state=0), Normalizer()).fit(values)
    graph = to_onnx(embedding, values[:1], target_opset=17).SerializeToString()
    write("sklearn_pca", graph, embedding.transform(values[:ITEMS]).astype(np.float32), X=values[:ITEMS])
    wide = np.hstack([values, values**2, np.abs(values), np.sign(values)])
    logistic = make_pipeline(MinMaxScaler(), LogisticRegression()).fit(wide, labels)
    graph = to_onnx(logistic, wide[:1], target_opset=17).SerializeToString()
    write("sklearn_logistic", graph, logistic.predict_proba(wide[:ITEMS]).astype(np.float32), X=wide[:ITEMS])
    targets = values[:, :16] @ random.normal(size=(16, 12)) + random.normal(size=(len(values), 12))
    linear = LinearRegression().fit(values, targets)
    graph = to_onnx(linear, values[:1], target_opset=17).SerializeToString()
    write("sklearn_linear", graph, linear.predict(values[:ITEMS]).astype(np.float32), X=values[:ITEMS])


def keras() -> None:
    """Convolutions with batch norms in NHWC, a flattened picture, recurrent layers, an embedding, attention."""
    import tensorflow as tf
    import tf2onnx

    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    relu = {"activation": "relu"}
    picture, series = tf.keras.Input((12, 12, 3), name="picture"), tf.keras.Input((None, 8), name="series")
    words = tf.keras.Input((10,), dtype="int32", name="words")

    def normed(value: object) -> object:
        return layers.ReLU()(layers.BatchNormalization()(value))

    first = normed(layers.Conv2D(8, 3, padding="same", use_bias=False)(picture))
    deep = normed(layers.DepthwiseConv2D(3, padding="same")(first))
    pooled = layers.GlobalAveragePooling2D()(normed(layers.Conv2D(24, 3, strides=2)(layers.Add()([first, deep]))))
    flat = layers.Flatten()(layers.MaxPooling2D(2)(layers.Conv2D(6, 3, **relu)(picture)))
    found = layers.Embedding(150, 16)(words)
    attended = layers.Add()([found, layers.MultiHeadAttention(2, 8)(found, found)])
    networks = {
        "keras_convolutions": (picture, layers.Dense(10)(pooled)),
        "keras_flat": (picture, layers.Dense(10)(layers.Dense(16, **relu)(flat))),
        "keras_lstm": (series, layers.Dense(6)(layers.LSTM(24)(series))),
        "keras_gru": (series, layers.Dense(6)(layers.GRU(28)(series))),
        "keras_words": (words, layers.Dense(8)(layers.GlobalMaxPooling1D()(layers.Conv1D(16, 3, **relu)(found)))),
        "keras_attention": (
            words,
            layers.Dense(8)(layers.GlobalAveragePooling1D()(layers.LayerNormalization()(attended))),
        ),
    }
    for name, (given, result) in networks.items():
        network = tf.keras.Model(given, result)
        for layer in network.layers:
            for weight in layer.weights if isinstance(layer, layers.BatchNormalization) else ():
                weight.assign(random.uniform(0.5, 1.5, weight.shape))
        shape = [ITEMS, *(7 if size is None else size for size in given.shape[1:])]
        items = random.normal(size=shape).astype(np.float32)
        if given is words:
            items = random.integers(0, 150, shape).astype(np.int32)
        signature = [tf.TensorSpec(given.shape, given.dtype, name=given.name)]
        call = tf.function(network.call, input_signature=signature)
        graph, _ = tf2onnx.convert.from_function(call, signature, opset=17)
        write(name, graph.SerializeToString(), network(items).numpy(), **{given.name: items})


def paddle() -> None:
    """Convolutions with batch norms, an embedding, a recurrent layer."""
    import paddle
    import paddle2onnx
    from paddle import nn

    paddle.seed(0)
    random = np.random.default_rng(0)

    class Convolutions(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2D(3, 8, 3, padding=1, bias_attr=False), nn.BatchNorm2D(8)
            self.last, self.norm2 = nn.Conv2D(8, 24, 3, stride=2), nn.BatchNorm2D(24)
            self.out = nn.Linear(24, 10)

        def forward(self, pixels: object) -> object:
            value = nn.functional.relu(self.norm(self.first(pixels)))
            value = nn.functional.hardswish(self.norm2(self.last(value)))
            return self.out(nn.functional.adaptive_avg_pool2d(value, 1).flatten(1))

    class Words(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.hidden, self.out = nn.Embedding(150, 16), nn.Linear(16, 32), nn.Linear(32, 8)

        def forward(self, words: object) -> object:
            return self.out(nn.functional.gelu(self.hidden(self.table(words))).mean(1))

    class Recurrent(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.out = nn.LSTM(8, 20), nn.Linear(20, 6)

        def forward(self, series: object) -> object:
            return self.out(self.layer(series)[0][:, -1])

    networks = {
        "paddle_convolutions": (Convolutions(), "pixels", "float32", [None, 3, 12, 12]),
        "paddle_words": (Words(), "words", "int64", [None, 10]),
        "paddle_lstm": (Recurrent(), "series", "float32", [None, 7, 8]),
    }
    for name, (network, given, dtype, shape) in networks.items():
        for layer in network.sublayers():
            if isinstance(layer, nn.BatchNorm2D):
                for weight in (layer.weight, layer.bias, layer._mean, layer._variance):
                    weight.set_value(random.uniform(0.5, 1.5, weight.shape).astype("float32"))
        network.eval()
        items = random.normal(size=[ITEMS, *shape[1:]]).astype(np.float32)
        if dtype == "int64":
            items = random.integers(0, 150, [ITEMS, *shape[1:]])
        with tempfile.TemporaryDirectory() as place:
            paddle.jit.save(network, f"{place}/m", input_spec=[paddle.static.InputSpec(shape, dtype, given)])
            program = next(path for ending in ("json", "pdmodel") if (path := Path(place) / f"m.{ending}").exists())
            paddle2onnx.export(str(program), f"{place}/m.pdiparams", f"{place}/m.onnx", opset_version=17)
            graph = (Path(place) / "m.onnx").read_bytes()
        write(name, graph, network(paddle.to_tensor(items)).numpy(), **{given: items})


if __name__ == "__main__":
    {"sklearn": sklearn, "keras": keras, "paddle": paddle}[sys.argv[1]]()
