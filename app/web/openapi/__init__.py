"""What the OpenAPI document says beyond what FastAPI writes: problems, links, summaries, examples."""
