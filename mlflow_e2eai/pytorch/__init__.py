"""PyTorch module -> ONNX. The only importers of PyTorch.

stage         `export`: the first exporter whose graph computes the module's numbers
exporters     dynamo, TorchScript trace and script
verification  the exported graph against the module
references    samples with the module's outputs, which verification compares with
guards        sizes that the guards of an exported program point at
flat_module   a module that takes and returns tensors by name
sequences     packed sequences that nothing pads, as outputs of a trace
state         buffers, hooks and random states, put back after a call
module        properties of a module: names, device, mode
module_code   the code of a module as a digest
pytree        nested arguments and outputs
runner        the module as a runner
archives      models in files that PyTorch wrote
consent       whether such a file may run code
hugging_face  models in folders of weights
operators/    operators that are not ONNX's own
"""
