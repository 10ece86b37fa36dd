"""Two callables and samples -> ParityReport: do they compute the same numbers?

comparison  runs both on each sample, in turns
comparer    outputs -> sums and findings
measure     two arrays -> how they differ
slices      errors of an output by index along an axis
outputs     outputs of one call, and the circumstances of it
tolerances  how much they may differ
samples     generated samples, at the corners of a profile, between them and beyond
variations  samples with other masks, indices and numbers than the example's
report      the report
"""

from mlflow_e2eai.parity.comparison import compare
from mlflow_e2eai.parity.report import ParityReport
from mlflow_e2eai.parity.tolerances import TOLERANCES
