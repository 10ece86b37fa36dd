"""ONNX -> ONNX in another precision, with an fp32 interface.

Precision is a property of the graph, not a flag of the builder: TensorRT 11 and TensorRT-RTX build
strongly typed networks only, and TensorRT 10 has the same as an option.

stage         `convert`
half          fp16 and bf16
half_weights  their weights
opsets        graphs in a later operator set
quantize      int8 and fp8
calibration   ranges of quantised values
statistics    ranges of values, seen on samples
ranges        nodes that must stay in fp32 for their range
bf16_losses   nodes that must stay in fp32 for bf16's few digits
"""

from mlflow_e2eai.precision.stage import PrecisionReport, convert
