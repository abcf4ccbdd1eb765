"""A DAG of Airflow 3 that quantizes each night and fails when the checkpoint misses its limits.

Into the dags folder goes this file with ``../quantizing.py`` beside it; into the workers' environment
``quant-experts[client]``, QE_URL and QE_API_KEY.
"""

from datetime import datetime, timedelta

from airflow.sdk import dag, task
from quantizing import quantize


@dag(schedule="@daily", start_date=datetime(2026, 1, 1), catchup=False, tags=["quantization"])
def quantize_nightly(model: str = "acme/our-model", calibration: str = "rows.jsonl", max_kl: float = 0.05):
    @task(retries=2, execution_timeout=timedelta(hours=12))
    def quantized(model: str, calibration: str, max_kl: float, run_id: str | None = None) -> str:
        # Airflow fills in run_id. Tried again, the task finds the job of this run under the same key.
        return quantize(model, calibration, "W4A8", float(max_kl), f"quantize_nightly.{run_id}")

    quantized(model, calibration, max_kl)


quantize_nightly()
