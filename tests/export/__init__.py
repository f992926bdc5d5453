"""Bundles and their proof."""
