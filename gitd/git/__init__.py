"""Git smart HTTP for a resolver, an authoriser and a receiver of finished pushes."""
