"""What one cell of a study measures, and what it is measured on."""
