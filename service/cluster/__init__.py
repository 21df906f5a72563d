"""Batches and replicas on a Ray cluster."""
