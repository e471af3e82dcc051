"""What the command line tools do, one module per verb. May import every room; no room imports it."""
