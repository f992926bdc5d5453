"""Bundles for a phone's NPU: static graphs, recipes, context binaries, and their proof."""
