"""Soft labels: a teacher's stored answers to crops of the training images."""
