"""A registered version, its evidence and gates -> a decision, and an alias if it passes.

stage       `promote`
contenders  the version to promote, and the one that holds the alias
metrics     what gates compare with their limits
registry    the decision as tags, and the alias
lease       one promoter of a registered model at a time
"""

from mlflow_e2eai.promotion.stage import promote
