"""Runners of graphs: ONNX Runtime, in this process or in a worker process.

ort          ONNX Runtime sessions and runners
emulation    precisions that ONNX Runtime has no CPU kernels for, by rounding
process      a worker process: call functions in it, notice its end
worker       the other side of it
fork_server  starts worker processes with their imports done
descriptors  what C++ writes to stderr
isolation    runners in worker processes
crashes      a crash as a folder with log, inputs and reproduction
progress     progress bars
termination  Ctrl-C and SIGTERM as exceptions
scratch      temporary files of a process in one folder
storage      folders that cannot be written to

Native code runs in a process of its own: a crash, a hang or a kill for memory ends that process,
and reaches the caller as a `RunnerError` that names the call. Comparisons run in the worker too, so
that only samples and the reference's outputs travel.
"""
