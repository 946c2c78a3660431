"""Benchmarks of the layers beside their peers: what `ostinato bench` runs."""
