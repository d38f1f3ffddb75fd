"""What visitors get, from the socket to the answer."""
