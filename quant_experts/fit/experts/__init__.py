"""The parts of the ``qe`` reconstruction (docs/method.md, section 4): partition, shared and routed experts, router."""
