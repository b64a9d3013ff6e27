"""The harness by which engineers decide what the farm is worth. `python -m bench.throughput` is its first part."""
