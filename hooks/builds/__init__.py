"""From a commit to a tree of files, in a sandbox."""
