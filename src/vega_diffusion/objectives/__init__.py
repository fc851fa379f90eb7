"""What a step minimises: one paper idea a file."""
