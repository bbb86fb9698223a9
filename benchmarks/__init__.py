"""Speed and memory beside the reference, on the same random weights at the published widths: `python -m benchmarks`."""
