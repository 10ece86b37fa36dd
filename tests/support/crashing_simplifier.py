"""A simplification whose first library ends the process, as native code does."""

import os
import signal

import onnx
import onnxslim


def simplify(_, library, content, largest):
    if library == "onnxsim":
        os.kill(os.getpid(), signal.SIGSEGV)
    model = onnxslim.slim(onnx.ModelProto.FromString(content), size_threshold=largest)
    return model.SerializeToString()
