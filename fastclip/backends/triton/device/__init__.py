"""What runs on the GPU, in Triton's language; importing it imports triton."""
