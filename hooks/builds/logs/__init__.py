"""What a build says, without the secrets that it was given."""
