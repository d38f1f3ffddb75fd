"""What builds keep of their dependencies for the next one."""
