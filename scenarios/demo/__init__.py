"""`costeer demo`: the whole path once, for real."""
