"""Everything that speaks to MLflow: runs, their curves and files, the registry, the comparison of two runs."""
