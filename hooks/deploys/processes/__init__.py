"""The programs of releases: run, checked, watched, and what they say."""
