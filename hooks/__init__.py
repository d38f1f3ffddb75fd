"""What a push fires: branches to environments, builds, deployments, and the jobs behind them."""
