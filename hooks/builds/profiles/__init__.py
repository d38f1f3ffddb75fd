"""What a commit is, and so how it is built and run."""
