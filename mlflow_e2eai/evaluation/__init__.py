"""Variants, samples and labelled data -> evidence.

Each variant's native code runs in a worker process (runtime/), where it is loaded, compared and
timed. The PyTorch module stays here, as the reference of all.

stage            `evaluate`: each variant by itself, then all in turns
effort           how much, by the level of evidence
variants         names of variants, and their runners
examination      what runs in each worker
data             the caller's evaluation data, batch by batch
data_forms       the forms that it may have
metrics          task metrics on labels
metric_code      a metric as plain data, by which its numbers are known again
evidence         what was measured
gates            gates -> decision
quantized_gates  whether a quantised variant is worth its error
bisection/       which nodes, or which step, made a variant fail
"""
