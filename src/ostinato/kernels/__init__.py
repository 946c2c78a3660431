"""Floor 1: how a cell runs along time."""
