"""vqtune: finds hyperparameters with which a VQ-VAE keeps its codebook alive."""

__version__ = "0.1.0"
