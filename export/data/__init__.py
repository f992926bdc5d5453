"""Text and steering cases that every verification uses; written for this purpose."""
