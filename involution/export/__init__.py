"""Files to deploy a model with: torch.export programs, AOTInductor packages and ONNX models.

``python -m involution.export CHECKPOINT --format pt2|aoti|onnx`` and :func:`export_checkpoint` make one of the
checkpoint of a training run; :func:`export_model` makes one of any model of maps. In every format batch and spatial
size stay open.

======  ========================================================================================================
format  what runs it
======  ========================================================================================================
pt2     Python with torch and involution, or with torch and the library of operators alone
aoti    C++ or Python with libtorch and the library of operators; machine code, for one kind of device
onnx    any ONNX runtime; standard operators only
======  ========================================================================================================
"""

from .comparison import Report, compare, table
from .deployable import Deployable
from .formats import FORMATS, ExportError, export_model, load
from .program import export_program
from .trained import export_checkpoint

__all__ = [
    "FORMATS",
    "Deployable",
    "ExportError",
    "Report",
    "compare",
    "export_checkpoint",
    "export_model",
    "export_program",
    "load",
    "table",
]
