"""The programs ``fastclip doctor`` and ``fastclip demo``; they use public names alone."""
