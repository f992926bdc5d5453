"""The two branches on a phone's NPU."""
