"""The CNN-RNN, its backbones and first weights, and its contract."""
