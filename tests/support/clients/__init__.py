"""Programs that ask a front door by the client libraries that people use: `python NAME.py URL`, in a venv that has the library.

Each prints JSON as its last line, and raises where the library cannot read an answer. Nothing of Omnibus is imported in them.
"""
