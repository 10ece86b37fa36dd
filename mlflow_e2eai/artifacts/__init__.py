"""The values that pass between stages: arrays, files, graphs, weights.

values          the frozen values that stages take and return
axes            dynamic axes: their corners, the sizes between, specs and text form
sampler         samples at other sizes than the example's
arrays          NumPy arrays: samples, checks, comparison
files           JSON and files, written whole or not at all
yaml_nodes      YAML as plain values, each with its line
graphs          ONNX files: read, checked, written
value_types     types of the values inside a graph
model_file      ONNX files as they are: loaded and checked
repairs         repairs of ONNX files that other tools wrote
names           fresh names for what a stage adds to a graph
external_data   tensors that an ONNX file keeps in other files
weight_files    those files: checked, referred to, written once; weights of subgraphs
example         input examples that nobody gave
libraries       shared libraries with operators or plugins
build_settings  how engines are built
machine         what this machine is
"""
