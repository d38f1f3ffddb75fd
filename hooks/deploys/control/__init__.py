"""Control's side of rolls: what each environment should serve, and what came of it."""
