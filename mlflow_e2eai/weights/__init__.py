"""Weights that an ONNX file keeps in other files: checked, referred to, written once.

Up to `EXTERNAL_BYTES` a graph is one file. Above that, in memory each large tensor only refers to
its bytes, by the absolute path of their file; on disk that file lies beside the graph, named by its
content (``<start of its sha256>.weights``). So graphs with the same weights share one file, and a
stage that leaves the weights alone hands them on by hard link.
"""

from mlflow_e2eai.weights.content import digest, files_of, lie_beside, verify_graph
from mlflow_e2eai.weights.places import is_reference, references, settle, size_of, tensors, values
from mlflow_e2eai.weights.reading import fetch, skeleton
from mlflow_e2eai.weights.writing import beside, gathered, is_large, link, staged

__all__ = [
    "beside",
    "digest",
    "fetch",
    "files_of",
    "gathered",
    "is_large",
    "is_reference",
    "lie_beside",
    "link",
    "references",
    "settle",
    "size_of",
    "skeleton",
    "staged",
    "tensors",
    "values",
    "verify_graph",
]
