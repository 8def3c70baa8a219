"""Commands about jobs: plan, run, extract, submit, status, list, logs, cancel, resume, cluster."""
