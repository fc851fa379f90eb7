"""From sources of pictures to batches of tensors."""
