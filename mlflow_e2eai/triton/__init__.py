"""A bundle -> a model repository that NVIDIA's Triton Inference Server serves."""

from mlflow_e2eai.triton.repository import export_triton

__all__ = ["export_triton"]
