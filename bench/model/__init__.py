"""What a clip should take on a GPU: bytes and launches, counted and not measured."""
