"""Codecs and vocoders of transformers as an engine."""
