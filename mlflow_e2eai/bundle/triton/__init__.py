"""A bundle -> a model repository that NVIDIA's Triton Inference Server serves."""
