"""From a model to a device-ready bundle, with the proof beside it."""

import edge_runtime  # noqa: F401  (first: it keeps onnxruntime from reporting)
