"""Structures as tensors, their neighbours, files and the growing data set."""
