"""The way out of a build, and where it may lead."""
