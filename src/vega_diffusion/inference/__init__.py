"""From a request to pictures: encode, denoise, decode."""
