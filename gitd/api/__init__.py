"""The deployments API below /v1."""
