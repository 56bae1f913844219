"""Runs in an interpreter of its own that has paddlelite: writes .nb files and runs them.

It imports nothing of slimseek, and keeps to the syntax of CPython 3.8. A message, in both directions, is a line of JSON
and then the bytes of the arrays that its "arrays" names: [[name, dtype, shape], ...]. Orders come on standard input;
answers go to what was standard output, and the library's own talk to standard error. A library that aborts ends this
process alone.

    {"do": "version"}                                                                   -> {"version": "v2.13-rc"}
    {"do": "build", "model": FILE, "parameters": FILE, "integers": BOOL, "for": "X86" or "ARM", "out": FILE.nb} -> {}
    {"do": "open", "model": FILE.nb, "threads": N}                                      -> {"inputs": [NAME, ...]}
    {"do": "run"} and arrays by the names of inputs                                     -> {} and the array "vector"

What fails with an exception is answered {"error": TEXT}.
"""

import json
import os
import sys

# mypy: ignore-errors


def build(lite, order):
    """Optimize a program of PaddlePaddle into one file; the library adds the ending .nb itself.

    It picks kernels for arm on x86, too, without running them.
    """
    config = lite.CxxConfig()
    config.set_model_file(order["model"])
    config.set_param_file(order["parameters"])
    kinds = [lite.PrecisionType.INT8] if order["integers"] else []
    kinds += [lite.PrecisionType.FP32, lite.PrecisionType.INT64, lite.PrecisionType.Any]
    config.set_valid_places([lite.Place(getattr(lite.TargetType, order["for"]), kind) for kind in kinds])
    lite.create_paddle_predictor(config).save_optimized_model(order["out"][: -len(".nb")])
    if not os.path.isfile(order["out"]):
        raise RuntimeError("the optimizer wrote nothing")
    # Behind the library's version stands what its memory held.
    with open(order["out"], "r+b") as written:
        written.seek(2)
        version = written.read(16).split(b"\0")[0]
        written.seek(2)
        written.write(version.ljust(16, b"\0"))
    return {}


def opened(lite, order, state):
    config = lite.MobileConfig()
    config.set_model_from_file(order["model"])
    if hasattr(config, "set_threads"):
        config.set_threads(order["threads"])
    state["predictor"] = lite.create_paddle_predictor(config)
    return {"inputs": state["predictor"].get_input_names()}


def answer(order, arrays, state):
    """The answer to one order, and the arrays that go with it."""
    from paddlelite import lite

    if order["do"] == "version":
        return {"version": lite.Opt().version()}, {}
    if order["do"] == "build":
        return build(lite, order), {}
    if order["do"] == "open":
        return opened(lite, order, state), {}
    if order["do"] != "run":
        raise ValueError("unknown order {!r}".format(order["do"]))
    predictor = state["predictor"]
    for number, name in enumerate(predictor.get_input_names()):
        predictor.get_input(number).from_numpy(arrays[name])
    predictor.run()
    return {}, {"vector": predictor.get_output(0).numpy()}


def receive(stream):
    """The next message, or None at the end."""
    import numpy

    line = stream.readline()
    if not line:
        return None
    order, arrays = json.loads(line.decode()), {}
    for name, dtype, shape in order.pop("arrays", []):
        count = 1
        for size in shape:
            count *= size
        held = stream.read(count * numpy.dtype(dtype).itemsize)
        arrays[name] = numpy.frombuffer(held, dtype).reshape(shape).copy()
    return order, arrays


def send(stream, message, arrays):
    import numpy

    held = [(name, numpy.ascontiguousarray(array)) for name, array in arrays.items()]
    message = dict(message, arrays=[[name, array.dtype.name, list(array.shape)] for name, array in held])
    stream.write(json.dumps(message).encode() + b"\n")
    for _, array in held:
        stream.write(array.tobytes())
    stream.flush()


def main():
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    state = {}
    while True:
        message = receive(sys.stdin.buffer)
        if message is None:
            return
        try:
            found, arrays = answer(message[0], message[1], state)
        except Exception as error:
            found, arrays = {"error": f"{type(error).__name__}: {error}"}, {}
        send(answers, found, arrays)


if __name__ == "__main__":
    main()
