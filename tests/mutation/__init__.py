"""Mutation testing of the pure core, run by hand; results are in docs/mutation.md."""
