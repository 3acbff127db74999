"""Everything that speaks to MLflow: runs, curves, registry, comparison."""
