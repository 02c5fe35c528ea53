"""The loop, checkpoints, and the front of size against accuracy."""
