"""Floor 6: plots, reports and diagnosis."""
