"""From an artifact to a serving release."""
