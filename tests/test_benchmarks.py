"""Kept results of a benchmark belong to the source that made them."""

from __future__ import annotations

from pathlib import Path

from benchmarks.digits.runs import digest_of_files, fit_sources


def test_a_kept_result_is_stale_when_a_source_of_the_fit_changes(tmp_path: Path) -> None:
    sources = fit_sources()
    assert all(path.exists() for path in sources)
    assert any((path / "gptq.py").is_file() for path in sources)
    (tmp_path / "gptq.py").write_text("a = 1\n")
    before = digest_of_files([tmp_path])
    (tmp_path / "gptq.py").write_text("a = 2\n")
    assert digest_of_files([tmp_path]) != before
