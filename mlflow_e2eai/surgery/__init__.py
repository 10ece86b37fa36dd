"""ONNX -> cleaner ONNX, by rules.

A plan is data: a list of rules with arguments, as YAML or Python writes it. The cleaned graph keeps
its interface, but for the names and outputs that the plan itself changes, and its numbers, which
ONNX Runtime checks on samples.

stage            `clean`
report           its result
plan             plans and their text form
rules            the rules by name
interface_rules  rules that change names, types and shapes of inputs and outputs
node_edits       rules that remove nodes
pattern          rules that replace a pattern of nodes
deduplication    rules that merge equal nodes and constants
simplify         rules by libraries, in a process: onnxsim, onnxslim, folding of constants
simplifiers      both, imported without PyTorch
extraction       the part of a graph between tensors
interface        changes that rules may make to inputs and outputs
mapping          inputs and outputs of the raw graph as those of the clean one
outline          the graph before and after, for the report
"""

from mlflow_e2eai.surgery.plan import DEFAULT_PLAN, Step
from mlflow_e2eai.surgery.report import SurgeryReport
from mlflow_e2eai.surgery.rules import RULES
from mlflow_e2eai.surgery.stage import clean
