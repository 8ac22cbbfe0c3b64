"""What both halves use: the gradients and their check, the timing, and the parts of a report."""
