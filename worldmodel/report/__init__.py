"""Reports: learning curves, statistics and videos of run folders, beside published scores, on one page."""
