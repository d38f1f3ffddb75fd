"""What speaks to the outside: git over HTTP, the deployments API, the commands."""
