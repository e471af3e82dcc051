"""What every room needs and no room owns: configs, files, the training loop, dashboards."""
