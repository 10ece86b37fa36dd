"""The stages, one after the other or one at a time, on values that a recorder logs.

build           all stages on a model in memory
stages          each stage with its log, for build and jobs alike
variant_stages  evaluation with its log
keys            keys of stages
earlier_runs    results of earlier runs in the place of stages
known_model     a PyTorch model and its digest
jobs            one stage on a logged model
job_inputs      the inputs of a job, from the lineage of its model
source          the PyTorch model or ONNX file at the root
onnx_file       an ONNX file as a source
engines         engines for all precisions and targets
settings        the options of a pipeline
options         options as text, for the command line and MLproject
model_factory   ``package.module:function`` as a model
model_source    a file, a folder of weights or a callable as a model
publish         a bundle's report in the tracking store
"""
