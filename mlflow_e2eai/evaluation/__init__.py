"""Samples, labelled data and variants -> evidence.

What a variant's native code does to its process is a result: each runs in one of its own
(isolation/), where it is loaded, compared and timed. The PyTorch module stays here, as the
reference of all.

candidates  what is to be judged
questions   what each is asked
judging     all of them, one after the other and then in turns
blame       which step lost the accuracy
"""

from mlflow_e2eai.evaluation.judging import evaluate

__all__ = ["evaluate"]
