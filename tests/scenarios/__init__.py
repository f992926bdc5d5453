"""Studies, figures and pages."""
