"""A registered version, its evidence and gates -> a decision, and an alias if it passes.

stage          `promote`
reversal       an alias goes back to a version that had it
redecision     a stored decision, computed again
challenge      a version, the aliases that it is to get, and the decision
decision_run   the decision as a run, its page, and tags of the version
contenders     registered versions -> their bundles, verified file by file
gates_file     gates.yaml, its schema, and errors that name the line
requirements   evidence, approvals and signatures that rules require
signers        keys that signed the files of a version
policy         gates, required targets and unmeasured engines -> decision
metrics        what gates compare with their limits
incumbent      the same against the version that holds the alias, from stored evidence
remeasurement  the latency of both, measured in turns, here or by a fleet
appraisal      bundles and policy -> decision and numbers; nothing is written
challengers    the best of several versions by a goal
remedies       what to do about each gate that did not pass
registry/      what the registry holds: records, approvals, and where aliases stand
"""

from mlflow_e2eai.promotion.stage import promote
