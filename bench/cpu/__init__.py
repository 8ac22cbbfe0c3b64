"""fastclip, stock PyTorch and the speed of memory, compared on this machine's CPU."""
