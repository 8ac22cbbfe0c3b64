"""What other libraries need to clip with fastclip; each module imports its library."""
