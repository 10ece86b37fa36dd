"""Wrong at some calls, of some sizes, after others, or beside others."""

from __future__ import annotations

import itertools
import threading
import time

import numpy as np

from planted.cases import CLASSES, SIZES, Net, answers_changed, batches, fault, only

# When


@answers_changed("wrong only at the largest batch", "tolerance")
def _(answer, tensors, _n):
    return {**answer, "logits": answer["logits"] + np.float32(len(tensors["x"]) == 16)}


@answers_changed("wrong only at odd batches", "tolerance")
def _(answer, tensors, _n):
    return {**answer, "logits": answer["logits"] + np.float32(len(tensors["x"]) % 2)}


@answers_changed("wrong only in the last item of a batch", "tolerance")
def _(answer, tensors, _n):
    answer["logits"][-1] *= 1 if len(tensors["x"]) == 1 else np.float32(1.1)
    return answer


@answers_changed("wrong only at the first call", "tolerance", "nondeterministic")
def _(answer, _t, number):
    return {**answer, "logits": answer["logits"] + np.float32(number == 1)}


@answers_changed("wrong from the third call on", "tolerance", "nondeterministic")
def _(answer, _t, number):
    return {**answer, "logits": answer["logits"] + np.float32(number > 2)}


@answers_changed("wrong from the third call of a sample on", "tolerance", "nondeterministic")
def _(answer, _t, number):
    return {**answer, "logits": answer["logits"] + np.float32(number > 8)}


@answers_changed("wrong at one call in nine", "tolerance", "nondeterministic")
def _(answer, _t, number):
    return {**answer, "logits": answer["logits"] + np.float32(number % 9 == 8)}


@answers_changed("wrong only once, at the thirtieth call", "tolerance", "nondeterministic")
def _(answer, _t, number):
    return {**answer, "logits": answer["logits"] + np.float32(number == 30)}


@fault("the outputs of the call before, where that had the same shape", "stale")
def _():
    net, before = Net(), {}

    def stale(tensors):
        outputs, size = net(tensors), len(tensors["x"])
        old = before.get(size, outputs)
        before.clear()
        before[size] = outputs
        return old

    return net, stale, batches(*SIZES)


@answers_changed("drifts by a little at each call", "tolerance", "nondeterministic")
def _(answer, _t, number):
    return {**answer, "logits": answer["logits"] * np.float32(1 + 2e-4 * number)}


@fault("wrong only after a change of shape", "tolerance", "nondeterministic")
def _():
    net, seen = Net(), []

    def candidate(tensors):
        changed = bool(seen) and seen[-1] != len(tensors["x"])
        seen.append(len(tensors["x"]))
        answer = net(tensors)
        return {**answer, "logits": answer["logits"] + np.float32(changed)}

    return net, candidate, batches(*SIZES)


@fault("wrong for every shape but the first that it saw", "tolerance")
def _():
    net, seen = Net(), []

    def candidate(tensors):
        seen.append(len(tensors["x"]))
        answer = net(tensors)
        return {**answer, "logits": answer["logits"] * np.float32(1 + (seen[-1] != seen[0]))}

    return net, candidate, batches(*SIZES)


# Memory


@fault("a stale output buffer: the answer of the call before", "tolerance", "stale")
def _():
    net, last = only("logits")(Net()), []

    def candidate(tensors):
        last.append(net(tensors))
        return last.pop(0) if len(last) > 1 else last[0]

    return net, candidate, batches(4, 4)


@fault("answers kept by shape", "tolerance", "stale")
def _():
    net, kept = Net(), {}
    return net, lambda t: kept.setdefault(len(t["x"]), net(t)), batches(4, 4)


@fault("a stale output buffer: written once, returned ever after", "tolerance", "stale")
def _():
    net, kept = only("logits")(Net()), []

    def candidate(tensors):
        kept.append(net(tensors)["logits"]) if not kept else None
        return {"logits": kept[0]}

    return net, candidate, batches(4, 4)


def _tail(rows):
    """A buffer of the largest size; `rows` says which of them are written, after the first time."""
    net = only("logits")(Net())
    buffer, calls = np.zeros((16, CLASSES), np.float32), itertools.count()
    same = batches(4)[0]["x"]

    def candidate(tensors):
        answer, size = net(tensors)["logits"], len(tensors["x"])
        written = slice(0, size) if next(calls) < 2 else rows(size)
        buffer[:size][written] = answer[written]
        return {"logits": buffer[:size]}

    other = same.copy()
    other[0] += 1  # only the first row tells the samples apart
    return net, candidate, [{"x": same}, {"x": other}]


@fault("an unwritten tail, where the samples are alike", "nonfinite", "unwritten")
def _():
    return _tail(lambda size: slice(0, size - 1))


@fault("an unwritten head", "nonfinite", "unwritten")
def _():
    return _tail(lambda _: slice(1, None))


@fault("it writes into its input", "changed_input")
def _():
    net = Net()

    def candidate(tensors):
        answer = net(tensors)
        np.maximum(tensors["x"], 0, out=tensors["x"])
        return answer

    return net, candidate, batches(*SIZES)


@fault("two buffers in turns: the answer of the call before the last", "tolerance")
def _():
    net, kept = only("logits")(Net()), []

    def candidate(tensors):
        kept.append(net(tensors))
        return kept.pop(0) if len(kept) > 2 else kept[-1]

    return net, candidate, batches(4, 4, 4)


# Threads


def _scratch(wrong):
    net, scratch = only("logits")(Net()), {}

    def candidate(tensors):
        scratch["x"] = tensors["x"]
        time.sleep(0.002)
        return wrong(net, tensors, scratch)

    return net, candidate, batches(4, 4)


@fault("wrong only under two threads: shared scratch memory", "threads")
def _():
    return _scratch(lambda net, _, scratch: net(scratch))


@fault("wrong only under two threads: a shared output buffer", "threads")
def _():
    net, buffer = only("logits")(Net()), np.empty((16, CLASSES), np.float32)

    def candidate(tensors):
        out = buffer[: len(tensors["x"])]
        out[:] = net(tensors)["logits"]
        return {"logits": out}

    return net, candidate, batches(4, 4)


@fault("an error only under two threads", "threads")
def _():
    net, lock = Net(), threading.Lock()

    def candidate(tensors):
        if not lock.acquire(blocking=False):
            msg = "busy"
            raise RuntimeError(msg)
        try:
            time.sleep(0.002)
            return net(tensors)
        finally:
            lock.release()

    return net, candidate, batches(*SIZES)
