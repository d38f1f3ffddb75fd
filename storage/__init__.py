"""What is kept, and the proof that it is what it says. Synchronous; imports nothing of ours."""
