"""Benchmarks of a checkout: `python -m benchmarks quantizers|step|job`, or `lowbit bench` with the same words."""
