"""The independent witness of the tests and the demo.

It knows what was promised (the accepted log of the load generator and the prober, lists of ids seeded into the
table) and what was done (the append-only effects file of the workers), and compares both with the stores. It
imports nothing of Sluice and nothing of the application, so that a mistake there cannot hide itself here.
"""
