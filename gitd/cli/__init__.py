"""mf, the command line of the deployments API: HTTP only."""
