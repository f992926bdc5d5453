"""Speed on this machine, each figure with the command that made it."""

import edge_runtime  # noqa: F401  (first: it keeps onnxruntime from reporting)
