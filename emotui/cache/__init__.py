"""Traces and activations on disk: keys, store, index."""
