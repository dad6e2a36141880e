"""Which executor runs the steps: processes on one host, or one Kubernetes pod per step."""

from __future__ import annotations

import os

import dagster as dg


def build_executor() -> dg.ExecutorDefinition:
    """`DSR_EXECUTOR=k8s` gives every step a pod of its own (extra `k8s`); otherwise two processes on this host.

    Raises:
        ValueError: the variable names no executor.
    """
    name = os.environ.get("DSR_EXECUTOR", "processes")
    if name == "processes":
        return dg.multiprocess_executor.configured({"max_concurrent": 2})
    if name == "k8s":
        from dagster_k8s import k8s_job_executor

        return k8s_job_executor
    raise ValueError(f"DSR_EXECUTOR={name!r}: unknown executor; set processes or k8s")
