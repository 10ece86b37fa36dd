"""A registered version, its evidence and gates -> a decision, and an alias if it passes.

stage  `promote`
"""

from mlflow_e2eai.promotion.stage import promote
