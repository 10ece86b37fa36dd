"""One folder with a manifest: graphs, engines and their evidence.

manifest   the manifest, written and read with its digests
audit      the files compared with the manifest
digests    the digests of all files of a model
load       opens the variant that was selected
choice     the goal, and the choice with its reasons
rows       the manifest as a table of variants
coverage   the GPUs that engines are for, and those that measured them
selection  which variant to run here, and why not the others
model      the callable
side_by_side  two bundles, measured in turns
batching   sizes outside a profile, and padding to buckets
attestation/  signatures of all files of a model
triton/    a model repository for NVIDIA's Triton Inference Server
"""

from mlflow_e2eai.bundle.audit import audit
from mlflow_e2eai.bundle.manifest import (
    EXAMPLE,
    FOLDER,
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    find,
    read,
    read_example,
    write,
)
