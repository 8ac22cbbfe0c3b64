"""The programs ``fastclip doctor`` and ``fastclip demo``; they use only public names."""
