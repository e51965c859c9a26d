"""The runner of batches, in every front door: a line is answered by the code that answers its endpoint."""
