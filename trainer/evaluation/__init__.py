"""What is measured of a model, and the tables, plots and texts that show it."""
