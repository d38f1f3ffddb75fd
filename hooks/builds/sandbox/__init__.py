"""What shuts a program in, and what it may use there."""
