"""What a build gets of its commit, and the tree that it makes of it."""
