"""The mathematics of diffusion: tensors in, tensors out; knows no network and no config."""
