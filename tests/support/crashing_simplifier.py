"""A simplification one of whose libraries ends the process, as native code does."""

import os
import signal

import onnx

from mlflow_e2eai.surgery.simplifiers import onnxsim, onnxslim


def simplify(worker, library, content, largest):
    return simplify_or_die("onnxsim", worker, library, content, largest)


def simplify_or_die(dies, worker, library, content, largest):
    worker.note.write_activity(f"in {library}")
    if library == dies:
        os.kill(os.getpid(), signal.SIGSEGV)
    model = onnx.ModelProto.FromString(content)
    if library == "onnxsim":
        return onnxsim.simplify(model)[0].SerializeToString()
    return onnxslim.slim(model, size_threshold=largest).SerializeToString()
