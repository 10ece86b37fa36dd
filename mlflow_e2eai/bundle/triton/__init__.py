"""A bundle -> a model repository that NVIDIA's Triton Inference Server serves.

repository  the repository on disk
models      Triton models of graphs and engines
config      the configuration of a model
batching    whether requests may be batched
"""
