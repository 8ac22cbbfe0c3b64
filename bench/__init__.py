"""The benchmark's rooms: core, which both halves use; cpu and gpu, which measure; model, counts."""
