"""Benchmarks behind ``subrosa bench``: each figure is a ratio to its primitive operations or a peer, in one run."""
