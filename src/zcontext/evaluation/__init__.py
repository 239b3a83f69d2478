"""Measuring: what a codec keeps (`reconstruct`) and what a reader can do with it (`qa`)."""
