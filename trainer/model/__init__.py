"""The CNN-RNN, its backbones and their first weights, and the contract of a registered model."""
