"""fastclip, stock PyTorch, apex and TransformerEngine, compared on a GPU."""
