"""Samplers for t2ialign: one code for VP, rectified-flow and TrigFlow models."""
