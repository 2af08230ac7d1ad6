"""``worldmodel bench planners``: the same planners on known systems, on the truth and on learned models."""

LAYERS = ("analytic", "truth", "runs", "latency")
"""What can be measured: A, B, C and D of docs/planners.md."""
