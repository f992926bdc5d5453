"""From a model to a device-ready bundle, with the proof beside it."""
