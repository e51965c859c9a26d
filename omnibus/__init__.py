"""Serve omni-modality models as a pipeline of stages over NATS JetStream."""
