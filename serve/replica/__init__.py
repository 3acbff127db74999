"""The process with the model: it decodes, batches, classifies, and follows the registry's alias."""
