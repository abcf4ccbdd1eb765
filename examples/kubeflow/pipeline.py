"""A Kubeflow pipeline (KFP 2) with one component that quantizes and fails when the checkpoint misses its limits.

    pip install kfp kfp-kubernetes
    PYTHONPATH=examples python examples/kubeflow/pipeline.py     # writes quantize.yaml

The component reads the service's address and key from the Secret ``quant-experts``, keys QE_URL and QE_API_KEY.
"""

from kfp import compiler, dsl, kubernetes
from quantizing import quantize

quantized = dsl.component(quantize, base_image="python:3.12-slim", packages_to_install=["quant-experts[client]"])


@dsl.pipeline(name="quantize")
def pipeline(model: str, calibration: str, scheme: str = "W4A8", max_kl: float = 0.05) -> str:
    run = dsl.PIPELINE_JOB_NAME_PLACEHOLDER
    task = quantized(model=model, calibration=calibration, scheme=scheme, max_kl=max_kl, key=run)
    kubernetes.use_secret_as_env(task, "quant-experts", {"QE_URL": "QE_URL", "QE_API_KEY": "QE_API_KEY"})
    # A component that ran is not run again for the same arguments, though the service may have another answer by then.
    task.set_caching_options(False)
    return task.output


if __name__ == "__main__":
    compiler.Compiler().compile(pipeline, "quantize.yaml")
