"""The parts of the report's page: sentences, advice, numbers in words, and one file per chart."""
