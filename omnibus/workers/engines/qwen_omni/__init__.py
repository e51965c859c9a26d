"""Talkers and vocoders of Qwen's omni models, as classes of `python` stages."""
