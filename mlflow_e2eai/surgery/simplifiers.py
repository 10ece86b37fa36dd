"""onnxsim and onnxslim, imported without PyTorch.

onnxsim imports PyTorch where it can, in 1.3 s of CPU, for a feature that is not used here.
"""

from __future__ import annotations

import sys

_IS_ABSENT = "torch" not in sys.modules
if _IS_ABSENT:
    sys.modules["torch"] = None  # type: ignore[assignment]  # that is how an import is refused
try:
    import onnxsim
    import onnxslim
finally:
    if _IS_ABSENT:
        del sys.modules["torch"]

__all__ = ["onnxsim", "onnxslim"]
