"""Tests: unit (pure), integration (on a real nats-server), e2e (with real engines), chaos (kills and faults)."""
