"""A builder slot's side of builds: it runs them."""
