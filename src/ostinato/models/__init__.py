"""Floor 3: models, named by architecture; never import data."""
