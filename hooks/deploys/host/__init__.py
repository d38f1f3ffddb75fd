"""The site host's side of rolls: it puts releases in place, and serves them."""
