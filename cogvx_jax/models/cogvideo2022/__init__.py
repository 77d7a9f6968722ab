"""CogVideo of 2022: an autoregressive transformer over the codes of a VQ-VAE, with a temporal channel in each layer."""
