"""The parts of the quality report's page: sentences, advice, one file per chart; ``report_html`` has them all."""
