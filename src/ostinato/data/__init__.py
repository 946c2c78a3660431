"""Floor 1: files to records to arrays; never imports kernels, layers or models."""
