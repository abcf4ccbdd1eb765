"""What both pipelines do: submit a job, wait for it, and raise unless its checkpoint keeps the limits."""


def quantize(model: str, calibration: str, scheme: str, max_kl: float, key: str) -> str:
    """The id of the accepted job, on the service of QE_URL and QE_API_KEY.

    ``calibration``: a file, ``ds_…`` or a dataset of the hub. ``key``: of this run of
    the pipeline, in visible ASCII; a task that is tried again finds its job and waits for it.
    """
    # Here, so that the function can be sent elsewhere as it stands (Kubeflow does that).
    from pathlib import Path

    from quant_experts.client import Client

    with Client() as client:
        rows = client.datasets.upload(calibration) if Path(calibration).is_file() else calibration
        job = client.jobs.create(
            model=model, calibration=rows, scheme=scheme, accept_if={"max_kl": max_kl}, idempotency_key=key
        ).wait()
        if job.status != "succeeded" or job.verdict != "accepted":
            reason = job.error.message if job.error else job.verdict
            raise RuntimeError(f"{job.id} ended {job.status}: {reason}")
        return job.id
