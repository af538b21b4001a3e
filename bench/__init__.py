"""Measures the server: ratios on the same work in one run, and figures with the machine's own."""
