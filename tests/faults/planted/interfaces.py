"""Names, types and shapes of outputs that are not those of the model."""

from __future__ import annotations

import numpy as np

from planted.cases import CLASSES, Net, answers_changed, batches, fault, of_arrays, only


@answers_changed("swapped outputs", "tolerance", "swapped")
def _(answer, _t, _n):
    return {**answer, "logits": answer["other"], "other": answer["logits"]}


@answers_changed("a transposed output", "shape", "transposed")
def _(answer, _t, _n):
    return {**answer, "logits": answer["logits"].T}


@fault("a transposed output that is square", "tolerance", "transposed")
def _():
    net = only("logits")(Net())
    return net, lambda t: {"logits": net(t)["logits"].T}, batches(CLASSES, CLASSES)


@answers_changed("an output is renamed", "missing_output", "unexpected_output")
def _(answer, _t, _n):
    return {"logits_1" if name == "logits" else name: value for name, value in answer.items()}


@answers_changed("an output is missing", "missing_output")
def _(answer, _t, _n):
    del answer["other"]
    return answer


@answers_changed("an output is missing from the fourth call on", "missing_output")
def _(answer, _t, number):
    return {"logits": answer["logits"]} if number > 3 else answer


@answers_changed("an output too many", "unexpected_output")
def _(answer, _t, _n):
    return {**answer, "debug": answer["label"]}


@answers_changed("float64 for float32", "dtype")
def _(answer, _t, _n):
    return {**answer, "logits": answer["logits"].astype(np.float64)}


@answers_changed("float16 for float32", "dtype")
def _(answer, _t, _n):
    return {**answer, "logits": answer["logits"].astype(np.float16)}


@answers_changed("int32 for int64", "dtype")
def _(answer, _t, _n):
    return {**answer, "label": answer["label"].astype(np.int32)}


@answers_changed("an axis too many", "shape")
def _(answer, _t, _n):
    return {**answer, "logits": answer["logits"][None]}


@answers_changed("a batch of one is squeezed", "shape")
def _(answer, _t, _n):
    return {**answer, "logits": np.squeeze(answer["logits"])}


@answers_changed("padding to a power of two is not cut off", "shape")
def _(answer, _t, _n):
    return {**answer, "logits": np.pad(answer["logits"], [(0, 0), (0, 6)])}


@fault("a ragged output with one item too short", "shape")
def _():
    def ragged(cut):
        return lambda t: {"y": [row[: 3 + at - cut * (at == 1)] for at, row in enumerate(t["x"])]}

    return ragged(0), ragged(1), batches(4, 2)


@fault("a ragged output with one number wrong", "tolerance")
def _():
    def ragged(more):
        return lambda t: {"y": [row[: 3 + at] + more * (at == 1) for at, row in enumerate(t["x"])]}

    return ragged(np.float32(0)), ragged(np.float32(1)), batches(4, 2)


@fault("a data-dependent count is off by one", "shape")
def _():
    def kept(limit):
        return lambda t: {"y": np.sort(t["x"].ravel())[::-1][: int((t["x"] > limit).sum()) + 1]}

    def candidate(tensors):
        return {"y": kept(0)(tensors)["y"][:-1]}

    return kept(0), candidate, batches(4, 2)


@fault("one text differs", "tolerance")
def _():
    return of_arrays(np.array(["cat", "dog"]), np.array(["cat", "dot"]))
