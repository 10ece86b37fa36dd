"""A registered version, its evidence and gates -> a decision, and an alias if it passes.

stage          `promote`
contenders     the version to promote, and the one that holds the alias
gates_file     gates.yaml, its schema, and errors that name the line
yaml_nodes     YAML as plain values, each with its line
policy         gates, required targets and unmeasured engines -> decision
metrics        what gates compare with their limits
incumbent      the same against the version that holds the alias, from stored evidence
remeasurement  the latency of both, measured here in turns
appraisal      bundles and policy -> decision and numbers; nothing is written
challengers    the best of several versions by a goal
remedies       what to do about each gate that did not pass
registry       the decision as tags, and the alias
lease          one promoter of a registered model at a time
"""

from mlflow_e2eai.promotion.stage import promote
